#include "plt.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace dfo {
namespace {

struct Request {
  const char* symbol;
  void* replacement;
  void* original;
};

struct Tables {
  const ElfW(Rela)* relocations = nullptr;
  size_t count = 0;
  const ElfW(Sym)* symbols = nullptr;
  const char* strings = nullptr;
};

Tables ReadTables(const dl_phdr_info* info) {
  Tables tables;
  const ElfW(Dyn)* entry = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) {
      entry = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    }
  }
  if (entry == nullptr) { return tables; }
  for (; entry->d_tag != DT_NULL; ++entry) {
    const auto address = entry->d_un.d_ptr;
    if (entry->d_tag == DT_JMPREL) { tables.relocations = reinterpret_cast<const ElfW(Rela)*>(address); }
    if (entry->d_tag == DT_PLTRELSZ) { tables.count = entry->d_un.d_val / sizeof(ElfW(Rela)); }
    if (entry->d_tag == DT_SYMTAB) { tables.symbols = reinterpret_cast<const ElfW(Sym)*>(address); }
    if (entry->d_tag == DT_STRTAB) { tables.strings = reinterpret_cast<const char*>(address); }
  }
  return tables;
}

void Write(void** slot, void* value) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(slot) & ~(page - 1);
  mprotect(reinterpret_cast<void*>(start), page, PROT_READ | PROT_WRITE);
  __atomic_store_n(slot, value, __ATOMIC_SEQ_CST);
}

int Visit(dl_phdr_info* info, size_t, void* data) {
  if (std::strstr(info->dlpi_name, "/liboneflow-") == nullptr) { return 0; }
  auto* request = static_cast<Request*>(data);
  const Tables tables = ReadTables(info);
  for (size_t i = 0; i < tables.count; ++i) {
    const ElfW(Rela)& relocation = tables.relocations[i];
    const ElfW(Sym)& symbol = tables.symbols[ELF64_R_SYM(relocation.r_info)];
    if (std::strcmp(tables.strings + symbol.st_name, request->symbol) != 0) { continue; }
    // The slot may still hold the lazy binding stub, so the original comes from the symbol table, or from whoever
    // else defines it.
    request->original = symbol.st_value == 0 ? dlsym(RTLD_DEFAULT, request->symbol)
                                             : reinterpret_cast<void*>(info->dlpi_addr + symbol.st_value);
    if (request->original == nullptr) { return 1; }
    Write(reinterpret_cast<void**>(info->dlpi_addr + relocation.r_offset), request->replacement);
    return 1;
  }
  return 1;
}

}  // namespace

void* Redirect(const char* symbol, void* replacement) {
  Request request{symbol, replacement, nullptr};
  dl_iterate_phdr(Visit, &request);
  return request.original;
}

}  // namespace dfo
