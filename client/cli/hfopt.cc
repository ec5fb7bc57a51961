// hfopt: the command line of people who own runs.

#include "client/cli/command.h"

int main(int argc, char** argv) { return hfopt::cli::Main(argc, argv); }
