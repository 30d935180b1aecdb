#include "tests/cuda_emu/symbol.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

namespace jevons::emu {
namespace {

// Function symbols of this binary by their address in the file. The dynamic symbols would lack all
// functions of internal linkage.
std::map<uintptr_t, std::string> ReadSymbols() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::map<uintptr_t, std::string> symbols;
  if (bytes.size() < sizeof(Elf64_Ehdr)) return symbols;
  const auto* const header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  const auto* const sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* const first =
        reinterpret_cast<const Elf64_Sym*>(bytes.data() + sections[i].sh_offset);
    const char* const names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (const auto* s = first; s != first + sections[i].sh_size / sizeof(Elf64_Sym); ++s) {
      if (ELF64_ST_TYPE(s->st_info) == STT_FUNC) symbols.emplace(s->st_value, names + s->st_name);
    }
  }
  return symbols;
}

// Where the binary was loaded.
uintptr_t LoadAddress() {
  uintptr_t address = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the binary itself
      },
      &address);
  return address;
}

std::string Demangle(const std::string& symbol) {
  int status = 0;
  char* const text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  if (status != 0) return symbol;
  std::string name = text;
  std::free(text);
  // A template's name begins with its type of result and ends before its parameters.
  const size_t end = name.rfind('(');
  if (end != std::string::npos) name.resize(end);
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  return name;
}

}  // namespace

std::string FunctionName(const void* function) {
  // Not made at the first call: ThreadSanitizer sees no guard of what is, in this file.
  static constinit std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static auto* const known = new std::map<const void*, std::string>;
  const auto found = known->find(function);
  if (found != known->end()) return found->second;
  static const auto* const symbols = new std::map<uintptr_t, std::string>(ReadSymbols());
  const auto symbol = symbols->find(reinterpret_cast<uintptr_t>(function) - LoadAddress());
  std::string name;
  if (symbol != symbols->end()) {
    name = Demangle(symbol->second);
  } else {
    char text[32];
    std::snprintf(text, sizeof(text), "at %p", function);
    name = text;
  }
  return known->emplace(function, name).first->second;
}

}  // namespace jevons::emu
