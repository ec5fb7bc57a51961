// Writes valid inputs for every fuzz target into DIRECTORY/TARGET: what a fuzzer would need long to come upon.

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/optimizer_state.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "hfopt/v1/run.pb.h"
#include "proto/wire/safetensors.h"
#include "proto/wire/vector_codec.h"
#include "server/convert/checkpoint.h"
#include "server/convert/options.h"
#include "server/run/checkpoint_file.h"

namespace hfopt {
namespace {

std::string directory;

std::string PathOf(const std::string& target, const std::string& name) {
  std::filesystem::create_directories(directory + "/" + target);
  return directory + "/" + target + "/" + name;
}

void Write(const std::string& target, const std::string& name, const std::string& bytes) {
  std::ofstream(PathOf(target, name), std::ios::binary) << bytes;
}

// As fuzz.h's Input::Piece reads it.
std::string Piece(const std::string& bytes) {
  return std::string{static_cast<char>(bytes.size() % 256), static_cast<char>(bytes.size() / 256)} + bytes;
}
std::string Piece(const google::protobuf::Message& message) { return Piece(message.SerializeAsString()); }

template <typename Scalar>
void WriteCheckpoint(const std::string& name) {
  OptimizerState<Scalar> state;
  state.iteration = 3;
  state.theta = Vector<Scalar>::LinSpaced(5, -1, 1);
  state.warm_start = state.theta;
  state.damping = 0.5;
  state.held_out_metrics = {{"errors", 2.0}};
  state.pairs.push_back(std::make_shared<const CurvaturePair<Scalar>>(CurvaturePair<Scalar>{state.theta, state.theta}));
  server::CheckpointView view = server::ViewCheckpoint(state);
  server::WriteCheckpointFile(PathOf("checkpoint", name), view).IgnoreError();
  wire::WriteSafetensors(PathOf("safetensors", name), view.tensors, {{"key", "value"}}).IgnoreError();
}

void WriteSessions() {
  v1::SessionRequest hello;
  v1::Hello& h = *hello.mutable_hello();
  h.set_protocol_version(1);
  h.set_worker_id("w");
  h.set_incarnation(1);
  h.set_num_parameters(5);
  h.set_training_examples(10);
  h.set_held_out_examples(10);
  h.add_element_types(v1::ELEMENT_TYPE_FLOAT32);
  h.set_second_moment(true);
  h.set_sub_batches(true);
  h.set_initial_parameters(true);
  const auto vector = [](uint64_t transfer) {
    v1::SessionRequest header, chunk;
    *header.mutable_vector_header() = wire::MakeHeader(transfer, "", 5, v1::ELEMENT_TYPE_FLOAT32);
    chunk.mutable_vector_chunk()->set_transfer(transfer);
    chunk.mutable_vector_chunk()->set_data(std::string(20, '\x3f'));
    return Piece(header) + Piece(chunk);
  };
  const auto answer = [](uint64_t id) {
    v1::SessionRequest message;
    message.mutable_answer()->set_request_id(id);
    return message;
  };
  const std::string usual_hello = Piece(hello);
  h.set_bfloat16(true);
  std::string session = usual_hello;
  v1::SessionRequest losses = answer(1), gradient = answer(2), product = answer(3), parameters = answer(4), other;
  losses.mutable_answer()->mutable_losses()->add_loss_sums(1);
  losses.mutable_answer()->mutable_losses()->set_weight(5);
  gradient.mutable_answer()->mutable_gradient()->set_gradient_transfer(1);
  gradient.mutable_answer()->mutable_gradient()->set_second_moment_transfer(2);
  gradient.mutable_answer()->mutable_gradient()->set_weight(5);
  product.mutable_answer()->mutable_product()->set_product_transfer(3);
  product.mutable_answer()->mutable_product()->set_weight(5);
  parameters.mutable_answer()->mutable_initial_parameters()->set_parameters_transfer(4);
  session += Piece(losses) + vector(1) + vector(2) + Piece(gradient) + vector(3) + Piece(product) + vector(4) + Piece(parameters);
  other.mutable_lease_renewal();
  session += Piece(other);
  other.mutable_drain();
  Write("session", "all", session + Piece(other));

  // The fuzzer's pool wants bfloat16 where the size is 7 modulo 8.
  v1::SessionRequest halves_header, halves_chunk;
  *halves_header.mutable_vector_header() = wire::MakeHeader(3, "", 5, v1::ELEMENT_TYPE_BFLOAT16);
  halves_chunk.mutable_vector_chunk()->set_transfer(3);
  halves_chunk.mutable_vector_chunk()->set_data(std::string(10, '\x3f'));
  std::string halves = Piece(hello) + Piece(losses) + vector(1) + vector(2) + Piece(gradient) + Piece(halves_header) + Piece(halves_chunk) + Piece(product);
  size_t padding = 0;
  while ((halves + Piece(std::string(padding, '\0'))).size() % 8 != 7) ++padding;
  Write("session", "bfloat16", halves + Piece(std::string(padding, '\0')));
  v1::SessionRequest failure = answer(1);
  failure.mutable_answer()->mutable_failure()->set_message("out of memory");
  other.mutable_shared_memory_attached();
  Write("session", "failure", Piece(hello) + Piece(failure) + Piece(other));
  Write("session", "slot", Piece(hello) + Piece(other) + vector(1));
  v1::SessionRequest chunk;
  chunk.mutable_vector_chunk()->set_transfer(1);
  chunk.mutable_vector_chunk()->set_data(std::string(20, 'x'));
  Write("chunk", "one", std::string("\x05", 1) + "\x07" + Piece(chunk));
  chunk.mutable_vector_chunk()->set_data(std::string(8, 'x'));
  std::string two = std::string("\x05", 1) + "\x02" + Piece(chunk);
  chunk.mutable_vector_chunk()->set_offset(8);
  chunk.mutable_vector_chunk()->set_data(std::string(12, 'x'));
  Write("chunk", "two", two + "\x64" + Piece(chunk));
}

// A .npy file of format 1.0 (NumPy Enhancement Proposal 1).
std::string Npy(const std::string& type, const std::string& shape, const std::string& data) {
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  return "\x93NUMPY\x01" + std::string(1, '\0') + static_cast<char>(header.size() % 256) + static_cast<char>(header.size() / 256) + header + data;
}

void WriteData() {
  Write("data", "u1", std::string(1, '\0') + Npy("|u1", "(2, 3)", "abcdef"));
  Write("data", "u2", "\x01" + Npy("<u2", "(1, 2)", "abcd"));
  Write("data", "i4", "\x02" + Npy("<i4", "(2,)", "abcdefgh"));
  const auto idx = [](const std::string& dimensions) { return std::string(2, '\0') + '\x08' + dimensions; };
  Write("data", "labels", "\x03" + idx(std::string("\x01\0\0\0\x04", 5)) + "abcd");
  Write("data", "images", "\x04" + idx(std::string("\x03\0\0\0\x01\0\0\0\x02\0\0\0\x02", 13)) + "abcd");
}

void WriteOptions() {
  for (const auto preset : {v1::OptimizerOptions::PRESET_ACCELERATED, v1::OptimizerOptions::PRESET_PUBLISHED, v1::OptimizerOptions::PRESET_DETERMINISTIC}) {
    v1::OptimizerOptions options;
    options.set_preset(preset);
    const std::string full = server::OptionsToProto(server::OptionsFromProto(options).value(), preset).SerializeAsString();
    Write("options", "message-" + std::to_string(preset), std::string(1, '\0') + full);
  }
  Write("options", "text", "\x01" + Piece(std::string("conjugate_gradient.max_iterations=20")) + Piece(std::string("damping.rule=continuous")) +
                               Piece(std::string("samples.growth=variance")) + Piece(std::string("damping.initial=1e-3")));
}

}  // namespace
}  // namespace hfopt

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: hfopt_fuzz_seeds DIRECTORY\n";
    return 2;
  }
  using namespace hfopt;
  directory = argv[1];
  WriteCheckpoint<float>("float32");
  WriteCheckpoint<double>("float64");
  WriteSessions();
  WriteData();
  WriteOptions();
  Write("tokens", "two", "# tokens\noperator alice sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nreader bob "
                         "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 # since May\n");
}
