// Tells the thread sanitizer of Abseil's mutexes and of gRPC's operations. The distribution's libraries are not instrumented, so they order nothing that
// the sanitizer sees, and everything that is guarded by a mutex or handed to a callback looks like a race. Linked into an instrumented program,
// these functions stand in front of the libraries', for our code and for gRPC's; each calls the library's and says what it orders.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// What was done before an operation of gRPC was begun comes before its end, of which callbacks are told.
char operations;

// The library's function of the same name as `method`, which is one of ours.
template <typename Method>
Method Library(Method method) {
  void* ours = nullptr;
  std::memcpy(&ours, &method, sizeof(ours));
  Dl_info info = {};
  void* const theirs = dladdr(ours, &info) != 0 && info.dli_sname != nullptr ? dlsym(RTLD_NEXT, info.dli_sname) : nullptr;
  if (theirs == nullptr) {
    std::fprintf(stderr, "tsan_mutexes: no function of Abseil behind one of ours: %s\n", info.dli_sname);
    std::abort();
  }
  Method library = nullptr;
  std::memcpy(&library, &theirs, sizeof(theirs));
  return library;
}

}  // namespace

#define LIBRARY(Class, Method, ...)                      \
  ([&] {                                                 \
    static const auto method = Library(&Class::Method);  \
    return (this->*method)(__VA_ARGS__);                 \
  }())

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  LIBRARY(Mutex, Lock);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  __tsan_release(this);
  LIBRARY(Mutex, Unlock);
}

bool Mutex::TryLock() {
  const bool locked = LIBRARY(Mutex, TryLock);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  LIBRARY(Mutex, ReaderLock);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  __tsan_release(this);
  LIBRARY(Mutex, ReaderUnlock);
}

void Mutex::LockWhen(const Condition& condition) {
  LIBRARY(Mutex, LockWhen, condition);
  __tsan_acquire(this);
}

void Mutex::Await(const Condition& condition) {
  __tsan_release(this);
  LIBRARY(Mutex, Await, condition);
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  __tsan_release(this);
  const bool is_true = LIBRARY(Mutex, AwaitWithTimeout, condition, timeout);
  __tsan_acquire(this);
  return is_true;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  __tsan_release(this);
  const bool is_true = LIBRARY(Mutex, AwaitWithDeadline, condition, deadline);
  __tsan_acquire(this);
  return is_true;
}

// Evaluated under the lock, by whoever unlocks or by who has just been woken up and has not come back to us.
bool Condition::Eval() const {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool value = LIBRARY(Condition, Eval);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return value;
}

void CondVar::Wait(Mutex* mutex) {
  __tsan_release(mutex);
  LIBRARY(CondVar, Wait, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  __tsan_release(mutex);
  const bool timed_out = LIBRARY(CondVar, WaitWithTimeout, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  __tsan_release(mutex);
  const bool timed_out = LIBRARY(CondVar, WaitWithDeadline, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

ABSL_NAMESPACE_END
}  // namespace absl

// Of gRPC's C interface, whose types are of no interest here. Each operation of the C++ library takes a reference to its call, and gives it back before
// it calls us.
extern "C" int grpc_call_start_batch(void* call, const void* operation, size_t count, void* tag, void* reserved) {
  static const auto library = reinterpret_cast<decltype(&grpc_call_start_batch)>(dlsym(RTLD_NEXT, "grpc_call_start_batch"));
  __tsan_release(&operations);
  return library(call, operation, count, tag, reserved);
}

extern "C" void grpc_call_unref(void* call) {
  static const auto library = reinterpret_cast<decltype(&grpc_call_unref)>(dlsym(RTLD_NEXT, "grpc_call_unref"));
  __tsan_acquire(&operations);
  library(call);
}
