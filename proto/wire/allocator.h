#ifndef HFOPT_PROTO_WIRE_ALLOCATOR_H_
#define HFOPT_PROTO_WIRE_ALLOCATOR_H_

namespace hfopt::wire {

// Tells the C library to keep the pages of freed blocks: blocks of megabytes come and go with every vector that travels, and pages fresh
// from the system cost more than the copy into them (measured: 26 to 33 % of a transfer's CPU). Two arenas, not one for each thread,
// because each keeps its own (0.27 instead of 0.33 vectors of 40 MiB beside the user's). For a program's main, before its first thread.
void KeepFreedPages();

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_ALLOCATOR_H_
