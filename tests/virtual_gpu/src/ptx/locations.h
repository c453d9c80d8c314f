// .loc: from which line of the source the instructions come that follow.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "ptx/lexer.h"

namespace vgpu::ptx {

class Locations {
public:
    // A new body: until its first .loc, no place is known.
    void begin() {
        now_ = {};
        inlined_.clear();
    }

    // .loc file line column [, function_name label [+ offset], inlined_at file line column]   after ".loc"
    void read(Lexer& lex);

    // The outermost place: where the function whose code this is has the call.
    Location now() const { return now_; }

private:
    struct Place {
        uint32_t file, line, column;
        bool operator==(const Place&) const = default;
    };
    struct Hash {
        size_t operator()(const Place& p) const {
            uint64_t h = (uint64_t{p.file} << 32 | p.line) * 0x9e3779b97f4a7c15u;
            return static_cast<size_t>((h ^ h >> 29 ^ p.column) * 0xbf58476d1ce4e5b9u);
        }
    };
    static Place place(Lexer& lex);
    static Location location(const Place& p);

    Location now_;
    // inlined_at names a place that may itself be inlined: a compiler writes a .loc of its own for it before. What each such
    // place came to, last one counts.
    std::unordered_map<Place, Location, Hash> inlined_;
};

}  // namespace vgpu::ptx
