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
int32_t Locations::add(const Place& p, int32_t caller) {
    if (!p.line) return caller;
    const auto file = static_cast<int32_t>(p.file), line = static_cast<int32_t>(p.line);
    frames_.push_back({{file, line}, caller});
    return static_cast<int32_t>(frames_.size() - 1);
}

Location Locations::resolve(int32_t frame, const std::vector<std::string>& files) const {
    const auto of_toolkit = [](const std::string& path) {
        const size_t include = path.rfind("/include/");
        if (include == std::string::npos) return false;
        const std::string_view before = std::string_view(path).substr(0, include);
        return before.find("cuda") != std::string_view::npos || before.find("nvidia/cu") != std::string_view::npos;
    };
    Location outermost;
    for (; frame >= 0; frame = frames_[static_cast<size_t>(frame)].caller) {
        const Location& here = frames_[static_cast<size_t>(frame)].here;
        // A place in a file that nobody named is no place.
        if (static_cast<size_t>(here.file) >= files.size() || files[static_cast<size_t>(here.file)].empty()) continue;
        outermost = here;
        if (!of_toolkit(files[static_cast<size_t>(here.file)])) break;
    }
    return outermost;
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
        const auto outer = inlined_.find(at);
        now_ = add(here, outer == inlined_.end() ? add(at, -1) : outer->second);
        inlined_[here] = now_;
        return;
    }
    now_ = add(here, -1);
    if (!inlined_.empty()) inlined_.erase(here);
}

}  // namespace vgpu::ptx
