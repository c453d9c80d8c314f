#include "ptx/locations.h"

namespace vgpu::ptx {

Locations::Place Locations::place(Lexer& lex) {
    Place p;
    p.file = static_cast<uint32_t>(lex.unsigned_integer("a file's number", INT32_MAX));
    p.line = static_cast<uint32_t>(lex.unsigned_integer("a line", INT32_MAX));
    p.column = static_cast<uint32_t>(lex.unsigned_integer("a column", INT32_MAX));
    return p;
}

// Line 0 is the compiler's way to say that an instruction comes from no line in particular.
Location Locations::location(const Place& p) {
    if (!p.line) return {};
    return {static_cast<int32_t>(p.file), static_cast<int32_t>(p.line)};
}

void Locations::read(Lexer& lex) {
    Place here = place(lex);
    bool inlined = false;
    Place at{};
    while (lex.accept(',')) {
        std::string_view word = lex.name("function_name or inlined_at");
        if (word == "function_name") {
            lex.name("a label");
            if (lex.accept('+')) lex.unsigned_integer("an offset");
        } else if (word == "inlined_at") {
            at = place(lex);
            inlined = true;
        } else {
            lex.fail("unknown '" + std::string(word) + "' in .loc");
        }
    }
    if (inlined) {
        auto outer = inlined_.find(at);
        now_ = outer == inlined_.end() ? location(at) : outer->second;
        inlined_[here] = now_;
        return;
    }
    now_ = location(here);
    if (!inlined_.empty()) inlined_.erase(here);
}

}  // namespace vgpu::ptx
