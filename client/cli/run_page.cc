#include "client/cli/run_page.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"

namespace hfopt::cli {
namespace {

using Align = Table::Align;

// Names and values, indented.
class Facts {
 public:
  void Add(std::string name, std::string value) { table_.AddRow({"", std::move(name), std::move(value)}); }
  std::string ToString() const { return table_.ToString(); }

 private:
  Table table_{{{""}, {""}, {""}}};
};

std::string DescribeOptimizer(const v1::RunOptions& options) {
  return absl::StrCat(FormatEnum(options.optimizer().preset()), ", ",
                      options.element_type() == v1::ELEMENT_TYPE_FLOAT64 ? "float64" : "float32", ", ",
                      options.shards() == 0 ? "as many shards as workers" : absl::StrCat(options.shards(), " shards"),
                      ", seed ", options.seed());
}

// What CG is preconditioned with; "" where that is not known yet.
std::string DescribePreconditioner(const v1::Run& run) {
  using P = v1::PreconditionerOptions;
  const P& options = run.options().optimizer().preconditioner();
  std::vector<std::string> parts;
  if (options.lbfgs() == P::LBFGS_FROZEN || options.lbfgs() == P::LBFGS_FLEXIBLE) {
    parts.push_back(absl::StrCat(options.memory(), options.lbfgs() == P::LBFGS_FROZEN ? " frozen" : " flexible", " L-BFGS pairs"));
  }
  const bool if_offered = options.diagonal() == P::DIAGONAL_SQUARED_GRADIENTS_IF_OFFERED;
  if (if_offered && !run.has_model()) return "";
  if (options.diagonal() == P::DIAGONAL_SQUARED_GRADIENTS || (if_offered && run.model().second_moment())) parts.push_back("squared-gradient diagonal");
  if (!parts.empty()) return absl::StrJoin(parts, ", ");
  return if_offered ? "none: the workers offer no second moments" : "none";
}

std::string DescribeCost(const v1::Cost& cost) {
  return absl::StrFormat("%.2f example-passes: %s gradients, %s linearizations, %s products, %s losses in %s exchanges",
                         cost.example_passes(), FormatCount(cost.gradients()), FormatCount(cost.linearizations()),
                         FormatCount(cost.products()), FormatCount(cost.losses()),
                         FormatCount(cost.exchanges()));
}

// "1.2 s: client compute 90 %, transport 5 %, ...", without what took nothing worth a per cent.
std::string DescribeShares(const v1::PhaseSeconds& seconds) {
  std::vector<std::string> shares;
  const auto add = [&](const char* phase, double value) {
    if (value >= 0.005 * seconds.total() && value > 0) shares.push_back(absl::StrCat(phase, " ", FormatPercent(value / seconds.total())));
  };
  add("client compute", seconds.client_compute());
  add("transport", seconds.transport());
  add("reduction", seconds.reduction());
  add("server arithmetic", seconds.server_arithmetic());
  add("waiting for workers", seconds.waiting());
  return absl::StrCat(FormatSeconds(seconds.total()), shares.empty() ? "" : ": ", absl::StrJoin(shares, ", "));
}

std::string DescribeIteration(const v1::IterationReport& report) {
  Facts facts;
  facts.Add("iteration", absl::StrCat(report.iteration(), report.accepted() ? "" : " (rejected)"));
  facts.Add("held-out loss", FormatLoss(report.held_out_loss()));
  for (const auto& [name, value] : report.metrics()) facts.Add(name, absl::StrFormat("%.5g", value));
  facts.Add("training loss", FormatLoss(report.training_loss()));
  facts.Add("gradient norm", absl::StrFormat("%.4g", report.gradient_norm()));
  facts.Add("lambda", absl::StrFormat("%.4g, then %.4g", report.damping(), report.next_damping()));
  facts.Add("rho", absl::StrFormat("%.3f", report.reduction_ratio()));
  facts.Add("CG", absl::StrFormat("%d iterations, stopped by %s, took iterate %d, step %.3g", report.cg_iterations(),
                                  FormatEnum(report.cg_stop()), report.chosen_iterate(), report.step_length()));
  facts.Add("samples",
            absl::StrFormat("gradient %s, curvature %s, held-out %s", FormatCount(report.gradient_examples()),
                            FormatCount(report.curvature_examples()), FormatCount(report.held_out_examples())));
  facts.Add("pairs", absl::StrFormat("%d kept, %d skipped", report.pairs_kept(), report.pairs_skipped()));
  facts.Add("time",
            absl::StrCat(DescribeShares(report.seconds()),
                         report.reissued() == 0 ? "" : absl::StrCat(", ", report.reissued(), " requests sent again"),
                         report.hedged() == 0 ? "" : absl::StrCat(", ", report.hedged(), " asked of a second worker, the first being late")));
  return facts.ToString();
}

std::string DescribeWorkers(const v1::Run& run) {
  Table table({{"  worker"},
               {"connected"},
               {"shards"},
               {"answers", Align::kRight},
               {"compute", Align::kRight},
               {"sent to it", Align::kRight},
               {"received", Align::kRight},
               {"vectors through"}});
  for (const v1::WorkerStatus& worker : run.workers()) {
    table.AddRow({absl::StrCat("  ", worker.worker_id()), worker.connected() ? "yes" : "no",
                  worker.shards().empty() ? "-" : absl::StrJoin(worker.shards(), ","), FormatCount(worker.answers()),
                  FormatSeconds(worker.compute_seconds()), FormatBytes(worker.bytes_sent()),
                  FormatBytes(worker.bytes_received()), worker.shared_memory() ? "shared memory" : "gRPC"});
  }
  return table.ToString();
}

}  // namespace

std::string IdOf(const v1::Run& run) { return std::string(absl::StripPrefix(run.name(), "runs/")); }

std::string DescribeState(const v1::Run& run) {
  const std::string state = FormatEnum(run.state());
  if (run.state() == v1::RUN_STATE_ENDED) {
    return absl::StrCat(state, ": ", FormatEnum(run.termination().reason()), " (", run.termination().detail(), ")");
  }
  return run.state_detail().empty() ? state : absl::StrCat(state, " (", run.state_detail(), ")");
}

std::string DescribeSeconds(const v1::PhaseSeconds& seconds) {
  Table table({{""}, {""}, {"", Align::kRight}, {"", Align::kRight}});
  const auto add = [&](const char* phase, double value) {
    table.AddRow({"", phase, FormatSeconds(value), seconds.total() > 0 ? FormatPercent(value / seconds.total()) : ""});
  };
  add("client compute", seconds.client_compute());
  add("transport", seconds.transport());
  add("reduction", seconds.reduction());
  add("server arithmetic", seconds.server_arithmetic());
  add("waiting for workers", seconds.waiting());
  add("total", seconds.total());
  return table.ToString();
}

std::string RunPage(const v1::Run& run) {
  Facts facts;
  facts.Add("run", IdOf(run));
  facts.Add("state", DescribeState(run));
  facts.Add("created", FormatTime(run.create_time()));
  facts.Add("optimizer", DescribeOptimizer(run.options()));
  if (const std::string preconditioner = DescribePreconditioner(run); !preconditioner.empty()) facts.Add("preconditioner", preconditioner);
  facts.Add("parameters",
            run.num_parameters() == 0 ? "known when the first worker has joined" : FormatCount(run.num_parameters()));
  if (run.has_best_held_out_loss()) {
    facts.Add("best", absl::StrCat("held-out loss ", FormatLoss(run.best_held_out_loss()), " after iteration ",
                                   run.best_iteration()));
  }
  if (run.has_last_iteration()) facts.Add("cost", DescribeCost(run.last_iteration().cost()));
  std::string page = facts.ToString();
  if (run.seconds().total() > 0) absl::StrAppend(&page, "\n  time\n", DescribeSeconds(run.seconds()));
  if (run.has_last_iteration()) absl::StrAppend(&page, "\n  last iteration\n", DescribeIteration(run.last_iteration()));
  if (!run.workers().empty()) absl::StrAppend(&page, "\n", DescribeWorkers(run));
  return page;
}

std::string RunList(const std::vector<v1::Run>& runs) {
  Table table({{"RUN"},
               {"STATE"},
               {"ITERATION", Align::kRight},
               {"HELD-OUT", Align::kRight},
               {"BEST", Align::kRight},
               {"PARAMETERS", Align::kRight},
               {"WORKERS", Align::kRight},
               {"TIME", Align::kRight},
               {"CREATED"}});
  for (const v1::Run& run : runs) {
    const bool begun = run.has_last_iteration();
    const bool ended = run.state() == v1::RUN_STATE_ENDED;
    table.AddRow({IdOf(run),
                  ended ? absl::StrCat("ended: ", FormatEnum(run.termination().reason())) : FormatEnum(run.state()),
                  begun ? absl::StrCat(run.last_iteration().iteration()) : "-",
                  begun ? FormatLoss(run.last_iteration().held_out_loss()) : "-",
                  run.has_best_held_out_loss() ? FormatLoss(run.best_held_out_loss()) : "-",
                  run.num_parameters() == 0 ? "-" : FormatCount(run.num_parameters()), absl::StrCat(run.workers_size()),
                  begun ? FormatClock(run.seconds().total()) : "-", FormatTime(run.create_time())});
  }
  return table.ToString();
}

}  // namespace hfopt::cli
