#ifndef HFOPT_CLIENT_MODELS_MODEL_FACTORY_H_
#define HFOPT_CLIENT_MODELS_MODEL_FACTORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/model.h"
#include "client/models/acoustic_data.h"
#include "client/models/mlp.h"

namespace hfopt::models {

// A reference model in words, as on a command line. Empty texts stand for the task's default.
struct ModelSpec {
  // task             data folder                         layers                 hidden layers
  // an4              AN4's, monophone states             440-256-256-102        tanh
  // an4-cd           AN4's, tied triphone states         440-256-256-512        tanh
  // digits           images.npy and labels.npy           64-32-10               tanh
  // idx-autoencoder  IDX images, labels not needed       784-400-200-100-50-25-6-25-50-100-200-400-784 (the CURVES
  // network of Hinton &
  //                                                      Salakhutdinov 2006)    sigmoid, the middle one linear
  // inverse          none: synthetic, of `seed`          none: grid x grid conductivities (DiffusionInversion)
  // pinn-poisson     none                                2-32-32-1              tanh
  // pinn-convection  none                                2-50-50-50-1           tanh
  std::string task = "an4";
  std::string data;    // folder
  std::string layers;  // widths from the inputs to the outputs, "440-256-256-102"
  std::string
      activation;  // sigmoid, tanh, relu or linear for all hidden layers, or one for each: "sigmoid,linear,sigmoid"
  std::string initialization;  // "glorot" or "sparse"; by default sparse for idx-autoencoder, glorot for the others
  double l2 = 0;
  uint64_t seed = 1;    // of the examples' order; of the points of pinn-*, the truth and noise of inverse
  double fraction = 1;  // of AN4's training utterances
  int64_t grid = 96;    // cells along a side of `inverse`
};

// inverse and pinn-*: a problem without noise in its evaluations, ill-conditioned, to be solved in double precision with all data.
bool IsDeterministic(absl::string_view task);

// INVALID_ARGUMENT, naming field, value and what is allowed, for a bad spec; else the errors of the data.
template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakeModel(const ModelSpec& spec);

// A model of task an4 or an4-cd with the data that its evaluation needs.
template <typename Scalar>
struct AcousticModel {
  AcousticTargets targets = AcousticTargets::kMonophone;
  std::shared_ptr<const AcousticData> data;
  std::unique_ptr<Mlp<Scalar>> mlp;
};
template <typename Scalar>
absl::StatusOr<AcousticModel<Scalar>> MakeAcousticModel(const ModelSpec& spec);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_MODEL_FACTORY_H_
