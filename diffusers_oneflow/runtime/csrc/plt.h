// Redirects calls that liboneflow makes through its procedure linkage table.
#pragma once
#include <string>

namespace dfo {

// Makes every call of `symbol` (a mangled name) inside the loaded liboneflow go to `replacement`.
// Returns the function it went to before; nullptr where no such slot exists.
void* Redirect(const char* symbol, void* replacement);

}  // namespace dfo
