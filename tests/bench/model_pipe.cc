// Serves the loss and gradient of a reference model to another program, so that rivals of the optimizer (SGD, Adam, L-BFGS in Python) train the
// very same model, on the same data in the same order, from the same initial parameters, with the same compiled code.
//
//     hfopt_model_pipe BUFFER SCALAR SEED [options of the model, as for hfopt train]
//
// BUFFER is a file that both programs map: theta, then the gradient, n numbers each of SCALAR (float32 or float64). theta begins as the
// model's initial parameters for SEED. The first line of output is JSON: the sizes. Then each line of input is a command that is answered
// with one line of JSON:
//
//     gradient BEGIN END   of the mean loss over training examples BEGIN .. END - 1; {"loss": ...}
//     sgd BEGIN END RATE   a step with that gradient and momentum 0.9: theta is the new one; {"loss": ...} before it
//     adam BEGIN END RATE  likewise, a step of Adam
//     loss DATA            mean loss and metrics over all "training" or "held-out" examples
//     figures              what `hfopt train` prints at its end

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>

#include "CLI/CLI.hpp"
#include "client/cli/evaluation.h"
#include "client/cli/model_flags.h"
#include "client/models/model_factory.h"
#include "client/models/status_macros.h"
#include "nlohmann/json.hpp"

namespace hfopt {
namespace {

using Json = nlohmann::ordered_json;

template <typename Scalar>
absl::StatusOr<Scalar*> MapBuffer(const char* path, int64_t n) {
  const size_t bytes = 2 * n * sizeof(Scalar);
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return absl::ErrnoToStatus(errno, path);
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, path);
  return static_cast<Scalar*>(memory);
}

Json Means(const client::LossSum& sum) {
  Json means = {{"loss", sum.loss / sum.weight}};
  for (const auto& [name, total] : sum.metrics) means[name] = total / sum.weight;
  return means;
}

// Steps on the gradients g of mini-batches. Compiled: of an interpreter a first-order method pays one line each way for each step.
template <typename Scalar>
class FirstOrder {
 public:
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  explicit FirstOrder(int64_t n) : mean_(Array::Zero(n)), square_(Array::Zero(n)) {}

  void Sgd(const client::Vector<Scalar>& g, double rate, Eigen::Map<client::Vector<Scalar>>& theta) {
    mean_ = Scalar(0.9) * mean_ - Scalar(rate) * g.array();
    theta.array() += mean_;
  }

  // Kingma & Ba 2015, Algorithm 1, with its constants.
  void Adam(const client::Vector<Scalar>& g, double rate, Eigen::Map<client::Vector<Scalar>>& theta) {
    ++steps_;
    mean_ += Scalar(0.1) * (g.array() - mean_);
    square_ += Scalar(0.001) * (g.array().square() - square_);
    const Scalar step = Scalar(rate / (1 - std::pow(0.9, steps_))), unbias = Scalar(1 / (1 - std::pow(0.999, steps_)));
    theta.array() -= step * mean_ / ((unbias * square_).sqrt() + Scalar(1e-8));
  }

 private:
  Array mean_, square_;
  int64_t steps_ = 0;
};

template <typename Scalar>
absl::Status Serve(const char* buffer, uint64_t seed, const models::ModelSpec& spec) {
  HFOPT_ASSIGN_OR_RETURN(const auto model, models::MakeModel<Scalar>(spec));
  const int64_t n = model->num_parameters();
  HFOPT_ASSIGN_OR_RETURN(Scalar* const memory, MapBuffer<Scalar>(buffer, n));
  Eigen::Map<client::Vector<Scalar>> shared_theta(memory, n), shared_gradient(memory + n, n);
  HFOPT_ASSIGN_OR_RETURN(shared_theta, model->InitialParameters(seed));
  client::Vector<Scalar> gradient(n);
  FirstOrder<Scalar> first_order(n);
  std::cout << Json{{"parameters", n},
                    {"training_examples", model->num_examples(client::DataSet::kTraining)},
                    {"held_out_examples", model->num_examples(client::DataSet::kHeldOut)},
                    {"signature", model->signature()}}
            << std::endl;

  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command, data;
    words >> command;
    Json answer;
    if (command == "gradient" || command == "sgd" || command == "adam") {
      client::IndexRange range;
      double rate = 0;
      words >> range.begin >> range.end;
      if (command != "gradient" && !(words >> rate)) return absl::InvalidArgumentError("no rate: " + line);
      HFOPT_ASSIGN_OR_RETURN(const client::LossSum sum,
                             model->Gradient(shared_theta, {client::DataSet::kTraining, {range}}, gradient));
      gradient /= static_cast<Scalar>(sum.weight);
      if (command == "gradient") {
        shared_gradient = gradient;
      } else {
        command == "sgd" ? first_order.Sgd(gradient, rate, shared_theta) : first_order.Adam(gradient, rate, shared_theta);
      }
      answer = Means(sum);
    } else if (command == "loss") {
      words >> data;
      const client::DataSet set = data == "training" ? client::DataSet::kTraining : client::DataSet::kHeldOut;
      HFOPT_ASSIGN_OR_RETURN(const client::LossSum sum, model->Loss(shared_theta, {set, {{0, model->num_examples(set)}}}));
      answer = Means(sum);
    } else if (command == "figures") {
      HFOPT_ASSIGN_OR_RETURN(const std::vector<cli::Figure> figures, cli::Evaluate<Scalar>(spec, client::Vector<Scalar>(shared_theta)));
      for (const cli::Figure& figure : figures) answer[figure.key] = figure.value;
    } else {
      return absl::InvalidArgumentError("unknown command: " + line);
    }
    std::cout << answer << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace hfopt

int main(int argc, char** argv) {
  CLI::App app("Serves the loss and gradient of a reference model", "hfopt_model_pipe");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  std::string buffer, scalar;
  uint64_t seed = 0;
  hfopt::models::ModelSpec spec;
  app.add_option("BUFFER", buffer)->required();
  app.add_option("SCALAR", scalar)->required()->check(CLI::IsMember({"float32", "float64"}));
  app.add_option("SEED", seed)->required();
  hfopt::cli::AddModelFlags(app, spec);
  CLI11_PARSE(app, argc, argv);
  if (spec.data.empty()) spec.data = hfopt::cli::FindData(spec.task, hfopt::cli::ProgramPath());
  const absl::Status status = scalar == "float64" ? hfopt::Serve<double>(buffer.c_str(), seed, spec)
                                                  : hfopt::Serve<float>(buffer.c_str(), seed, spec);
  if (!status.ok()) std::cerr << "hfopt_model_pipe: " << status << "\n";
  return status.ok() ? 0 : 1;
}
