// Initialisers of module variables: nested braces, numbers, addresses of symbols.
#pragma once

#include <cstdint>
#include <vector>

#include "ptx/lexer.h"
#include "ptx/module.h"

namespace vgpu::ptx {

class Initializer {
public:
    // After the '='. dimensions: the array's, the first 0 if it was left out; v.count is set then.
    void read(Lexer& lex, Variable& v, std::vector<uint64_t> dimensions);

private:
    // A run of elements 0xFF(symbol), 0xFF00(symbol), ...: the bytes of an address.
    struct Bytes {
        Variable::Address address{};
        int done = 0;  // 0: no run
    };
    uint64_t braces(Lexer& lex, Variable& v, size_t level, uint64_t begin, uint64_t end);
    void value(Lexer& lex, Variable& v, uint64_t element);
    void number(Lexer& lex, Variable& v, const Number& n, uint64_t element);
    Variable::Address symbol(Lexer& lex);
    void part(Lexer& lex, Variable& v, uint64_t mask, uint64_t element);
    void reach(Lexer& lex, Variable& v, uint64_t bytes);

    std::vector<uint64_t> strides_;  // elements of one item, a level
    Bytes run_;
    uint64_t gaps_ = uint64_t{1} << 24;  // bytes of a module's initialisers that the text need not spell out
};

}  // namespace vgpu::ptx
