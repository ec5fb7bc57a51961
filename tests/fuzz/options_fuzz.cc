// Options of a run: as a message from the wire, and as SECTION.FIELD=VALUE from the command line. What is accepted must be accepted again, with
// every option filled in.

#include "client/cli/option_setter.h"
#include "hfopt/v1/run.pb.h"
#include "server/convert/options.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  fuzz::Input input(data, size);
  v1::OptimizerOptions options;
  if (input.Byte() % 2 == 0) {
    if (!options.ParseFromString(std::string(input.Rest()))) return 0;
  } else {
    while (!input.empty()) cli::SetOption(std::string(input.Piece()), options).IgnoreError();
  }
  const auto accepted = server::OptionsFromProto(options);
  if (!accepted.ok()) return 0;
  fuzz::Require(server::OptionsFromProto(server::OptionsToProto(*accepted, options.preset())).ok());
  return 0;
}
