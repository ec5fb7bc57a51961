#include "proto/wire/allocator.h"

#include <malloc.h>

namespace hfopt::wire {

void KeepFreedPages() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 2000 << 20);
  mallopt(M_TOP_PAD, 64 << 20);
  mallopt(M_ARENA_MAX, 2);
}

}  // namespace hfopt::wire
