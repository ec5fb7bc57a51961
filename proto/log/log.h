#ifndef HFOPT_PROTO_LOG_LOG_H_
#define HFOPT_PROTO_LOG_LOG_H_

#include <string>

namespace hfopt {

// Makes spdlog's default logger one that writes to a descriptor, a time and a level before each line, and waits for nobody: where the other end of a
// pipe does not read, lines are lost, and their number is said when it reads again. A process whose log waits is one that whoever reads it can stop.
// A pipe that nobody has open any more ends no process of ours (SIGPIPE is ignored).
void SetUpLog(const std::string& name, int descriptor = 2);

}  // namespace hfopt

#endif  // HFOPT_PROTO_LOG_LOG_H_
