// The characters of PTX: a cursor that knows its line. What a word means depends on where it stands (".2d" may be a modifier,
// "0f" a number), so the parser asks for what it expects instead of being handed tokens.
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "ptx/module.h"

namespace vgpu::ptx {

struct Number {
    Operand::Kind kind = Operand::Kind::integer;  // or f32, f64
    uint64_t bits = 0;
};

class Lexer {
public:
    explicit Lexer(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) { skip(); }

    int line() const { return line_; }

    [[noreturn]] void fail(const std::string& message) const { fail(line_, message); }
    [[noreturn]] static void fail(int line, const std::string& message) {
        throw SyntaxError("PTX line " + std::to_string(line) + ": " + message);
    }
    [[noreturn]] void expected(std::string_view what) const { fail("expected " + std::string(what) + ", found " + found()); }

    // Between any two calls the cursor stands on a character that is not blank, or at the end: '\0'.
    char peek() const { return at_ < end_ ? *at_ : '\0'; }
    char peek(size_t n) const { return n < static_cast<size_t>(end_ - at_) ? at_[n] : '\0'; }
    bool at_end() const { return at_ >= end_; }

    bool accept(char c) {
        if (peek() != c || at_end()) return false;
        ++at_;
        skip();
        return true;
    }
    void expect(char c) {
        if (!accept(c)) expected(std::string{'\'', c, '\''});
    }

    bool at_name() const { return is_start(peek()); }
    bool at_number() const { return is_digit(peek()) || (peek() == '.' && is_digit(peek(1))); }

    std::string_view name(std::string_view what) {
        std::string_view word = glued_name(what);
        skip();
        return word;
    }

    // A name as an operand: "%tid.x", "a.b0" are one.
    std::string_view dotted_name() {
        const char* begin = at_;
        glued_name("a name");
        if (peek() == '.' && is_word(peek(1))) {
            ++at_;
            while (is_word(peek())) ++at_;
        }
        std::string_view word(begin, static_cast<size_t>(at_ - begin));
        skip();
        return word;
    }

    // What follows a '.', which the caller has seen: "reg", "v4", "L2::128B".
    std::string_view dot_word() {
        ++at_;
        const char* begin = at_;
        for (;;) {
            if (!is_word(peek())) expected("a word after '.'");
            while (is_word(peek())) ++at_;
            if (peek() != ':' || peek(1) != ':') break;
            at_ += 2;
        }
        std::string_view word(begin, static_cast<size_t>(at_ - begin));
        skip();
        return word;
    }

    uint64_t unsigned_integer(std::string_view what, uint64_t most = UINT64_MAX) {
        if (!is_digit(peek())) expected(what);
        Number n = number();
        if (n.kind != Operand::Kind::integer) fail(std::string(what) + " is not an integer");
        if (n.bits > most) fail(std::string(what) + " is too large: " + std::to_string(n.bits));
        return n.bits;
    }

    // "9", "10": without the fraction that number() would see in "9.0".
    Number version_part() {
        if (!is_digit(peek())) expected("a version");
        Number n;
        n.bits = digits(10);
        if (is_word(peek())) fail("malformed version");
        skip();
        return n;
    }

    // The cursor stands on ".word".
    bool at_dot_word(std::string_view word) const {
        size_t left = static_cast<size_t>(end_ - at_);
        return left > word.size() && *at_ == '.' && std::string_view(at_ + 1, word.size()) == word &&
               !is_word(peek(word.size() + 1));
    }

    // With its sign. -0f3F800000 flips the sign bit.
    Number signed_number() {
        bool minus = false;
        if (accept('-'))
            minus = true;
        else
            accept('+');
        if (!at_number()) expected("a number");
        Number n = number();
        if (!minus) return n;
        if (n.kind == Operand::Kind::integer)
            n.bits = 0 - n.bits;
        else
            n.bits ^= n.kind == Operand::Kind::f32 ? uint64_t{1} << 31 : uint64_t{1} << 63;
        return n;
    }

    std::string string() {
        if (peek() != '"') expected("a string");
        int line = line_;
        std::string out;
        for (++at_;; ++at_) {
            if (at_end() || *at_ == '\n') fail(line, "a string does not end");
            if (*at_ == '"') break;
            if (*at_ != '\\') {
                out += *at_;
                continue;
            }
            ++at_;
            if (at_end() || *at_ == '\n') fail(line, "a string does not end");
            int octal = 0, digits = 0;
            while (digits < 3 && at_ < end_ && *at_ >= '0' && *at_ <= '7') {
                octal = octal * 8 + (*at_++ - '0');
                ++digits;
            }
            if (digits) {
                out += static_cast<char>(octal);
                --at_;
            } else {
                out += *at_ == 'n' ? '\n' : *at_ == 't' ? '\t' : *at_;
            }
        }
        ++at_;
        skip();
        return out;
    }

    // Past a balanced "{...}" or "(...)", at whose opening the cursor stands. What is in between need not be PTX.
    void skip_balanced(char open, char close) {
        int line = line_;
        size_t depth = 0;
        do {
            if (at_end()) fail(line, std::string("no '") + close + "' for this '" + open + "'");
            char c = *at_;
            if (c == '"') {
                string();
                continue;
            }
            if (c == open) ++depth;
            if (c == close) --depth;
            ++at_;
            skip();
        } while (depth);
    }

    // Past the ';' that ends a directive whose contents nobody needs.
    void skip_statement() {
        int line = line_;
        while (peek() != ';') {
            if (at_end()) fail(line, "no ';' for this directive");
            if (peek() == '"') {
                string();
                continue;
            }
            ++at_;
            skip();
        }
        ++at_;
        skip();
    }

    void skip_line() {
        while (at_ < end_ && *at_ != '\n') ++at_;
        skip();
    }

    std::string found() const {
        if (at_end()) return "the end of the text";
        const char* last = at_;
        while (last < end_ && last - at_ < 24 && (is_word(*last) || *last == '%' || *last == '.')) ++last;
        if (last == at_) ++last;
        std::string word;
        for (const char* c = at_; c < last; ++c) word += *c >= ' ' && *c < 127 ? *c : '?';
        return "'" + word + "'";
    }

private:
    // Bit 0: may be in a name. Bit 1: may begin one. Bit 2: a digit. Bit 3: blank.
    static constexpr std::array<uint8_t, 256> kClass = [] {
        std::array<uint8_t, 256> table{};
        for (int c = 'a'; c <= 'z'; ++c) table[static_cast<size_t>(c)] = table[static_cast<size_t>(c - 32)] = 3;
        for (int c = '0'; c <= '9'; ++c) table[static_cast<size_t>(c)] = 5;
        table['_'] = table['$'] = 3;
        table['%'] = 2;
        for (char c : {' ', '\t', '\n', '\r', '\v', '\f'}) table[static_cast<size_t>(c)] = 8;
        return table;
    }();
    static bool is(char c, int bit) { return kClass[static_cast<unsigned char>(c)] & bit; }
    static bool is_word(char c) { return is(c, 1); }
    static bool is_start(char c) { return is(c, 2); }
    static bool is_digit(char c) { return is(c, 4); }

    std::string_view glued_name(std::string_view what) {
        if (!at_name()) expected(what);
        const char* begin = at_++;
        while (is_word(peek())) ++at_;
        if (at_ - begin == 1 && *begin == '%') fail("a name of '%' alone");
        return {begin, static_cast<size_t>(at_ - begin)};
    }

    // Blanks and comments.
    void skip() {
        for (;;) {
            while (at_ < end_ && is(*at_, 8)) line_ += *at_++ == '\n';
            if (peek() != '/') return;
            if (peek(1) == '/') {
                const void* newline = std::memchr(at_, '\n', static_cast<size_t>(end_ - at_));
                at_ = newline ? static_cast<const char*>(newline) : end_;
            } else if (peek(1) == '*') {
                int line = line_;
                for (at_ += 2; peek() != '*' || peek(1) != '/'; ++at_) {
                    if (at_end()) fail(line, "a comment does not end");
                    line_ += *at_ == '\n';
                }
                at_ += 2;
            } else {
                return;
            }
        }
    }

    uint64_t digits(int base, size_t exactly = 0) {
        uint64_t value = 0;
        auto [last, error] = std::from_chars(at_, end_, value, base);
        size_t n = static_cast<size_t>(last - at_);
        if (error == std::errc::result_out_of_range) fail("a number of more than 64 bits");
        if (n == 0 || (exactly && n != exactly)) fail("malformed number");
        at_ = last;
        return value;
    }

    // Without a sign.
    Number number() {
        Number n;
        char second = static_cast<char>(peek(1) | 32);
        if (peek() == '0' && (second == 'f' || second == 'd' || second == 'x' || second == 'b')) {
            at_ += 2;
            // from_chars would take a sign
            if (!is_word(peek())) fail("malformed number");
            if (second == 'f') n = {Operand::Kind::f32, digits(16, 8)};
            if (second == 'd') n = {Operand::Kind::f64, digits(16, 16)};
            if (second == 'x') n.bits = digits(16);
            if (second == 'b') n.bits = digits(2);
        } else {
            const char* c = at_;
            while (c < end_ && is_digit(*c)) ++c;
            if (c < end_ && (*c == '.' || *c == 'e' || *c == 'E')) {
                double value = 0;
                auto [last, error] = std::from_chars(at_, end_, value);
                if (error != std::errc()) fail("malformed number");
                at_ = last;
                n.kind = Operand::Kind::f64;
                std::memcpy(&n.bits, &value, sizeof value);
            } else {
                n.bits = digits(peek() == '0' ? 8 : 10);
            }
        }
        if (n.kind == Operand::Kind::integer && peek() == 'U') ++at_;
        if (is_word(peek())) fail("malformed number");
        skip();
        return n;
    }

    const char* at_;
    const char* end_;
    int line_ = 1;
};

}  // namespace vgpu::ptx
