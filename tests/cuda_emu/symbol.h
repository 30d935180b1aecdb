// Names of functions, for reports.
#pragma once

#include <string>

namespace jevons::emu {

// The function's name with namespaces and template arguments, without parameters; its address where
// the binary has no symbols.
std::string FunctionName(const void* function);

}  // namespace jevons::emu
