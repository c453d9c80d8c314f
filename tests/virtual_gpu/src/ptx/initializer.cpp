#include "ptx/initializer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace vgpu::ptx {

void Initializer::read(Lexer& lex, Variable& v, std::vector<uint64_t> dimensions) {
    bool unsized = !dimensions.empty() && dimensions[0] == 0;
    if (v.vector > 1) dimensions.push_back(static_cast<uint64_t>(v.vector));
    strides_.assign(dimensions.size(), 1);
    for (size_t i = dimensions.size(); i-- > 1;) strides_[i - 1] = strides_[i] * dimensions[i];
    run_ = {};
    // In elements of the type: a vector has several.
    uint64_t all = v.count * static_cast<uint64_t>(v.vector);
    if (unsized) all = UINT64_MAX / 32;
    if (lex.accept('{')) {
        if (strides_.empty()) strides_.push_back(1);  // a scalar may be written in braces
        uint64_t used = braces(lex, v, 0, 0, all);
        if (unsized) v.count = (used + strides_[0] - 1) / strides_[0] * strides_[0] / static_cast<uint64_t>(v.vector);
    } else {
        if (!dimensions.empty()) lex.expected("'{'");
        value(lex, v, 0);
    }
    if (run_.done) lex.fail("only some bytes of the address of '" + run_.address.symbol + "'");
}

// After a '{'; elements begin to end are to be filled. Returns the end of those that were.
uint64_t Initializer::braces(Lexer& lex, Variable& v, size_t level, uint64_t begin, uint64_t end) {
    uint64_t at = begin;
    if (lex.accept('}')) return at;
    do {
        if (lex.peek() == '{') {
            if (level + 1 >= strides_.size()) lex.fail("an initialiser nests more deeply than its variable");
            uint64_t stride = strides_[level];
            at = begin + (at - begin + stride - 1) / stride * stride;
            if (at >= end) lex.fail("an initialiser is longer than its variable");
            lex.accept('{');
            braces(lex, v, level + 1, at, at + stride);
            at += stride;
        } else {
            if (at >= end) lex.fail("an initialiser is longer than its variable");
            value(lex, v, at++);
        }
    } while (lex.accept(','));
    lex.expect('}');
    return at;
}

void Initializer::value(Lexer& lex, Variable& v, uint64_t element) {
    if (lex.at_name()) {
        if (v.type.bytes != 8) lex.fail("an address in elements of " + std::to_string(v.type.bytes) + " bytes");
        if (run_.done) lex.fail("only some bytes of the address of '" + run_.address.symbol + "'");
        Variable::Address a = symbol(lex);
        a.offset = element * 8;
        reach(lex, v, a.offset + 8);
        v.addresses.push_back(std::move(a));
        return;
    }
    Number n = lex.signed_number();
    if (n.kind == Operand::Kind::integer && lex.accept('('))
        part(lex, v, n.bits, element);
    else
        number(lex, v, n, element);
}

void Initializer::number(Lexer& lex, Variable& v, const Number& n, uint64_t element) {
    using Kind = Operand::Kind;
    if (run_.done) lex.fail("only some bytes of the address of '" + run_.address.symbol + "'");
    size_t bytes = static_cast<size_t>(v.type.bytes);
    uint64_t bits = n.bits;
    if (v.type.name == "f32" || v.type.name == "f64") {
        double d = n.kind == Kind::f32   ? static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits)))
                   : n.kind == Kind::f64 ? std::bit_cast<double>(bits)
                                         : static_cast<double>(static_cast<int64_t>(bits));
        // A literal of the variable's own type keeps its bits, those of a NaN too.
        if (bytes == 4 && n.kind != Kind::f32) bits = std::bit_cast<uint32_t>(static_cast<float>(d));
        if (bytes == 8 && n.kind != Kind::f64) bits = std::bit_cast<uint64_t>(d);
    } else if (n.kind != Kind::integer && bytes != (n.kind == Kind::f32 ? 4u : 8u)) {
        lex.fail("a floating-point initialiser of a variable of type ." + v.type.name);
    } else if (v.type.name[0] == 'f' || v.type.name.starts_with("bf")) {
        lex.fail("an initialiser of a variable of type ." + v.type.name);
    }
    uint64_t at = element * bytes;
    reach(lex, v, at + bytes);
    std::memcpy(v.initial.data() + at, &bits, std::min<size_t>(bytes, 8));
    // 16 bytes: the sign goes on
    if (bytes == 16 && static_cast<int64_t>(bits) < 0) std::memset(v.initial.data() + at + 8, 0xff, 8);
}

// name, generic(name), either with an offset.
Variable::Address Initializer::symbol(Lexer& lex) {
    auto offset = [&lex]() -> int64_t {
        if (lex.peek() != '-' && !lex.accept('+')) return 0;
        Number n = lex.signed_number();
        if (n.kind != Operand::Kind::integer) lex.fail("an offset that is not an integer");
        return static_cast<int64_t>(n.bits);
    };
    Variable::Address a{};
    a.symbol = lex.name("a symbol");
    uint64_t addend = 0;
    if (a.symbol == "generic" && lex.accept('(')) {
        a.generic = true;
        a.symbol = lex.name("a symbol");
        addend = static_cast<uint64_t>(offset());
        lex.expect(')');
    }
    a.addend = static_cast<int64_t>(addend + static_cast<uint64_t>(offset()));
    return a;
}

void Initializer::part(Lexer& lex, Variable& v, uint64_t mask, uint64_t element) {
    if (v.type.bytes != 1) lex.fail("a byte of an address in elements of " + std::to_string(v.type.bytes) + " bytes");
    if (!lex.at_name()) lex.expected("a symbol");
    Variable::Address a = symbol(lex);
    lex.expect(')');
    a.offset = element - static_cast<uint64_t>(run_.done);
    const Variable::Address& known = run_.address;
    if (mask != uint64_t{0xff} << 8 * run_.done || (run_.done && (a.symbol != known.symbol || a.addend != known.addend ||
                                                                  a.generic != known.generic || a.offset != known.offset)))
        lex.fail("bytes of an address that are not its eight in order");
    run_.address = std::move(a);
    reach(lex, v, element + 1);
    if (++run_.done < 8) return;
    v.addresses.push_back(std::move(run_.address));
    run_ = {};
}

void Initializer::reach(Lexer& lex, Variable& v, uint64_t bytes) {
    uint64_t gap = bytes - v.initial.size();
    if (gap > 16) {
        if (gap > gaps_) lex.fail("an initialiser with too large gaps");
        gaps_ -= gap;
    }
    v.initial.resize(bytes);
}

}  // namespace vgpu::ptx
