// .loc: from which line of the source the instructions come that follow.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "ptx/lexer.h"
#include "ptx/module.h"

namespace vgpu::ptx {

class Locations {
public:
    explicit Locations(std::vector<Frame>& frames) : frames_(frames) {}

    // A new body: until its first .loc, no place is known.
    void begin() {
        now_ = -1;
        inlined_.clear();
    }

    // .loc file line column [, function_name label [+ offset], inlined_at file line column]   after ".loc"
    void read(Lexer& lex);

    // The place now, and who inlined it: for resolve(), once all files are known. -1: none.
    int32_t now() const { return now_; }

    // The innermost place that is not in a header of the toolkit: for code that is inlined from there, the line that calls it;
    // for code of the kernel's author, its own line, however often it is inlined.
    Location resolve(int32_t frame, const std::vector<std::string>& files) const;

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
    int32_t add(const Place& p, int32_t caller);

    std::vector<Frame>& frames_;
    int32_t now_ = -1;
    // inlined_at names a place that may itself be inlined: a compiler writes a .loc of its own for it before. The frame of each
    // such place, last one counts.
    std::unordered_map<Place, int32_t, Hash> inlined_;
};

}  // namespace vgpu::ptx
