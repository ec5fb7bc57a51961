#ifndef HFOPT_TESTS_CLIENT_CPP_SOCKET_ADDRESS_H_
#define HFOPT_TESTS_CLIENT_CPP_SOCKET_ADDRESS_H_

#include <unistd.h>

#include <atomic>
#include <string>

#include "gtest/gtest.h"

namespace hfopt::client {

// The address of a Unix socket that no other test uses. Sockets rather than in-process channels: the latter hand memory
// from thread to thread in ways that the thread sanitizer cannot see, and have no connection that could be lost.
inline std::string SocketAddress() {
  static std::atomic<int> number = 0;
  return "unix:" + ::testing::TempDir() + "hfopt." + std::to_string(getpid()) + "." + std::to_string(number++);
}

}  // namespace hfopt::client

#endif  // HFOPT_TESTS_CLIENT_CPP_SOCKET_ADDRESS_H_
