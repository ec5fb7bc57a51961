# What client/quickstart and tests/run share: packages of the distribution, and builds. To be sourced by bash.

BUILD_PACKAGES=(
  build-essential cmake ninja-build ccache pkg-config
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libprotoc-dev
  libabsl-dev libcli11-dev libeigen3-dev libspdlog-dev libsqlite3-dev libssl-dev libxxhash-dev nlohmann-json3-dev zlib1g-dev)
TEST_PACKAGES=(
  libbenchmark-dev libgmock-dev libgtest-dev libopenmpi-dev openmpi-bin
  python3 python3-grpcio python3-numpy python3-protobuf python3-setuptools python3-wheel)
# What the Python package works with: its tests skip, with a message, what is not there.
PYTHON_TEST_PACKAGES=(python3-ipykernel python3-matplotlib python3-nbclient python3-pandas python3-scipy python3-sklearn)

# install_packages PACKAGE...: those that are missing, from the distribution. Quiet and quick when nothing is.
install_packages() {
  local missing=() sudo=()
  for package; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "These packages are missing, and installing them takes root or sudo: ${missing[*]}" >&2
      return 1
    fi
    sudo=(sudo)
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  quietly "${sudo[@]}" apt-get -qq update
  quietly "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}"
}

# build ROOT PRESET [TARGET...] [-- CMAKE_OPTION...]: configures and builds in ROOT/build/PRESET; all targets when none is named.
build() {
  local root=$1 preset=$2 targets=() directory=$1/build/$2
  shift 2
  while (($#)) && [[ $1 != -- ]]; do
    targets+=("$1")
    shift
  done
  shift $(($# > 0))
  quietly cmake -S "$root" --preset "$preset" "$@"
  if [[ $(ninja -C "$directory" -n "${targets[@]}" 2>/dev/null) == *'no work to do'* ]]; then return 0; fi
  echo "building in build/$preset (minutes the first time)"
  if [[ -t 1 ]]; then
    ninja -C "$directory" "${targets[@]}"
  else
    quietly ninja -C "$directory" "${targets[@]}"
  fi
}

# run_bench ROOT PROGRAM [ARGUMENT...]: installs what is missing, builds a bench, and becomes it.
run_bench() {
  install_packages "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
  build "$1" bench "$2" >&2
  exec "$1/build/bench/tests/bench/$2" "${@:3}"
}

# quietly COMMAND...: shows what it wrote only if it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    echo "failed: $*" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}
