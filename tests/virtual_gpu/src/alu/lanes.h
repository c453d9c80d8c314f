// Loops over the 32 lanes of a row, in the form that the compiler vectorises, and values of a type in a row's cells.
// d may be the row of an operand: each lane reads before it writes, and rows never overlap in part.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "alu/alu.h"
#include "alu/formats.h"

namespace vgpu::lanes {

inline constexpr uint32_t kAll = ~uint32_t{0};

// Element types that C++ has no name for; their values are floats.
struct Half {};
struct Brain {};

template <class T>
inline constexpr bool kIs64 = sizeof(T) == 8;
template <class T>
using Cell = std::conditional_t<kIs64<T>, uint64_t, uint32_t>;

template <class T>
inline auto value(Cell<T> cell) {
    if constexpr (std::is_same_v<T, Half>)
        return formats::f16_to_f32(cell);
    else if constexpr (std::is_same_v<T, Brain>)
        return formats::bf16_to_f32(cell);
    else if constexpr (std::is_floating_point_v<T>)
        return std::bit_cast<T>(cell);
    else
        return static_cast<T>(cell);
}

// The bits above a narrow value are zero.
template <class T>
inline Cell<T> cell(T value) {
    if constexpr (std::is_floating_point_v<T>)
        return std::bit_cast<Cell<T>>(value);
    else
        return static_cast<std::make_unsigned_t<T>>(value);
}

template <class T>
inline Cell<T>* row(std::byte* regs, uint32_t at) {
    return reinterpret_cast<Cell<T>*>(regs + at);
}

// d[i] = f(i) for the lanes of mask; f is computed for all.
template <class C, class F>
[[gnu::always_inline]] inline void write(C* d, uint32_t mask, F f) {
    if (mask == kAll) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) d[i] = f(i);
    } else {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) {
            const C result = f(i);
            d[i] = mask >> i & 1 ? result : d[i];
        }
    }
}

// Bit i is f(i).
template <class F>
[[gnu::always_inline]] inline uint32_t bits(F f) {
    uint32_t result = 0;
    for (int i = 0; i < kLanes; ++i) result |= static_cast<uint32_t>(f(i)) << i;
    return result;
}

inline void write_predicate(std::byte* regs, uint32_t at, uint32_t mask, uint32_t value) {
    uint32_t& p = predicate(regs, at);
    p = (p & ~mask) | (value & mask);
}

// d = f(a), f(a, b), f(a, b, c): f is a stateless function, D and the others say how the cells are read.
template <auto f, class D, class A>
void map1(const Instruction& in, std::byte* regs, uint32_t mask) {
    const auto* a = row<A>(regs, in.a);
    write(row<D>(regs, in.d), mask, [&](int i) { return cell<D>(f(value<A>(a[i]))); });
}

template <auto f, class D, class A, class B>
void map2(const Instruction& in, std::byte* regs, uint32_t mask) {
    const auto* a = row<A>(regs, in.a);
    const auto* b = row<B>(regs, in.b);
    write(row<D>(regs, in.d), mask, [&](int i) { return cell<D>(f(value<A>(a[i]), value<B>(b[i]))); });
}

template <auto f, class D, class A, class B, class C>
void map3(const Instruction& in, std::byte* regs, uint32_t mask) {
    const auto* a = row<A>(regs, in.a);
    const auto* b = row<B>(regs, in.b);
    const auto* c = row<C>(regs, in.c);
    write(row<D>(regs, in.d), mask, [&](int i) { return cell<D>(f(value<A>(a[i]), value<B>(b[i]), value<C>(c[i]))); });
}

// All of one type.
template <auto f, class T>
inline constexpr Alu unary = map1<f, T, T>;
template <auto f, class T>
inline constexpr Alu binary = map2<f, T, T, T>;
template <auto f, class T>
inline constexpr Alu ternary = map3<f, T, T, T, T>;

}  // namespace vgpu::lanes
