#ifndef HFOPT_SERVER_RUN_ARITHMETIC_THREADS_H_
#define HFOPT_SERVER_RUN_ARITHMETIC_THREADS_H_

namespace hfopt::server {

// From now on the arithmetic with long vectors, of all runs of this process, is shared out over `threads` threads, the caller's among them. They
// sleep while there is nothing to do, and a run computes while its own workers wait: those on the same machine have the cores when they need them.
// The results do not depend on the number. To be called before anything is computed, and not in a process that forks.
void ShareOutArithmetic(int threads);

// The cores that this process, or the container it is in, may use, up to 8: memory is busy then.
int DefaultArithmeticThreads();

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_ARITHMETIC_THREADS_H_
