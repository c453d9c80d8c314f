// mma.sync and movmatrix. PTX ISA 9.0, 9.7.14.5.
//
// All of mma's fragments but those of m8n8k4 on f16 follow one rule. Lane i stands for row (or, in B, column) i / 4 and for
// the (i % 4)th group of the elements that one register holds. A register of 32 lanes so is a block, row-major in lane order:
//   A  8 rows x (4 * elements) of k; registers go through the upper and lower 8 rows first (m16), then along k
//   B  (4 * elements) of k x 8 columns, columns outermost; registers go along k
//   C  8 rows x 8 columns, two elements a lane; the upper 8 rows come first
//
// The hardware's order of summation, its rounding on the way and its treatment of subnormal inputs are unspecified. Here the
// products are exact, a sum is taken in double in the order of k, starting from c, and rounded once to d's type. f64 is a chain
// of fma in the order of k. Integers are exact; a sum beyond 32 bits wraps, or is clamped (.satfinite).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "alu/alu.h"
#include "alu/families.h"
#include "alu/form.h"
#include "alu/formats.h"
#include "alu/real.h"

namespace vgpu {
namespace {

using namespace formats;

constexpr int kSide = 8;  // rows and columns of a block of C

// Eight columns of a row: wider than most registers, the compiler splits it where it has to.
typedef double Doubles __attribute__((vector_size(kSide * sizeof(double))));
typedef int32_t Integers __attribute__((vector_size(kSide * sizeof(int32_t))));

// Element formats. kPitch: bits from one element of a register to the next.
template <class F, int pitch = F::kBits, int shift = 0>
struct Float {
    using Value = double;
    using Narrow = float;
    static constexpr int kPitch = pitch;
    static float value(uint32_t x) { return decode<F>(x >> shift); }
};
template <int bits, bool is_signed>
struct Integer {
    using Value = int32_t;
    using Narrow = int32_t;
    static constexpr int kPitch = bits;
    static int32_t value(uint32_t x) {
        const uint32_t top = x << (32 - bits);
        return is_signed ? static_cast<int32_t>(top) >> (32 - bits) : static_cast<int32_t>(top >> (32 - bits));
    }
};

// The elements of a register in the order of lanes and, within one, from the low bits up: on a little-endian machine that is
// how they lie.
template <class T>
void load_rows(const uint32_t* lanes, void* values) {
    constexpr int kCount = kLanes * 32 / T::kPitch;
    auto* out = static_cast<typename T::Value*>(values);
    if constexpr (T::kPitch == 4) {
        uint8_t pairs[kCount / 2];
        std::memcpy(pairs, lanes, sizeof(pairs));
        for (int i = 0; i < kCount / 2; ++i) {
            out[2 * i] = T::value(pairs[i]);
            out[2 * i + 1] = T::value(pairs[i] >> 4);
        }
    } else {
        using Storage = std::conditional_t<T::kPitch == 8, uint8_t, std::conditional_t<T::kPitch == 16, uint16_t, uint32_t>>;
        Storage elements[kCount];
        std::memcpy(elements, lanes, sizeof(elements));
        typename T::Narrow narrow[kCount];  // in steps, which the compiler needs to vectorise them
        for (int i = 0; i < kCount; ++i) narrow[i] = T::value(elements[i]);
        for (int i = 0; i < kCount; ++i) out[i] = narrow[i];
    }
}

// One register of B: values[k][column].
template <class T>
void load_columns(const uint32_t* lanes, void* values) {
    constexpr int kDepth = 4 * 32 / T::kPitch;
    auto* out = static_cast<typename T::Value*>(values);
    typename T::Value columns[kSide][kDepth];
    load_rows<T>(lanes, columns);
    for (int k = 0; k < kDepth; ++k)
        for (int g = 0; g < kSide; ++g) out[k * kSide + g] = columns[g][k];
}

struct Element {
    std::string_view name;
    int pitch, target;
    bool kind;  // takes .kind::f8f6f4 and, where target is above 89, needs it
    void (*rows)(const uint32_t*, void*);
    void (*columns)(const uint32_t*, void*);
};
template <class T>
constexpr Element element(std::string_view name, int target, bool kind = false) {
    return {name, T::kPitch, target, kind, &load_rows<T>, &load_columns<T>};
}
constexpr Element kElements[] = {
    element<Float<F16>>("f16", 80),
    element<Float<BF16>>("bf16", 80),
    element<Float<TF32, 32, 13>>("tf32", 80),  // the low 13 bits of a register are not looked at
    element<Float<E4M3>>("e4m3", 89, true),
    element<Float<E5M2>>("e5m2", 89, true),
    element<Float<E3M2, 8>>("e3m2", 120, true),
    element<Float<E2M3, 8>>("e2m3", 120, true),
    element<Float<E2M1, 8, 2>>("e2m1", 120, true),  // in the middle of its byte
    element<Integer<8, true>>("s8", 80),
    element<Integer<8, false>>("u8", 80),
    element<Integer<4, true>>("s4", 80),
    element<Integer<4, false>>("u4", 80),
};

// Blocks of C: values[lane * 2 + element].
void load_block(std::byte* regs, const uint32_t*& registers, bool half, double* values) {
    if (half) {
        const uint32_t* c = u32(regs, *registers++);
        for (int i = 0; i < kLanes; ++i) {
            values[2 * i] = f16_to_f32(c[i]);
            values[2 * i + 1] = f16_to_f32(c[i] >> 16);
        }
        return;
    }
    const uint32_t *c = u32(regs, registers[0]), *next = u32(regs, registers[1]);
    registers += 2;
    for (int i = 0; i < kLanes; ++i) {
        values[2 * i] = as_float(c[i]);
        values[2 * i + 1] = as_float(next[i]);
    }
}

void store_block(std::byte* regs, const uint32_t*& registers, bool half, const double* values) {
    if (half) {
        uint32_t* d = u32(regs, *registers++);
        float odd[2 * kLanes];  // so that the second rounding is as if it were the only one
        uint32_t halves[2 * kLanes];
        for (int i = 0; i < 2 * kLanes; ++i) odd[i] = real::narrow_to_odd(values[i]);
        for (int i = 0; i < 2 * kLanes; ++i) halves[i] = f32_to_f16(odd[i]);
        for (int i = 0; i < kLanes; ++i) d[i] = halves[2 * i] | halves[2 * i + 1] << 16;
        return;
    }
    uint32_t rounded[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) rounded[i] = bits_of(static_cast<float>(values[i]));
    for (uint32_t& x : rounded) x = (x & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : x;
    for (int j = 0; j < 2; ++j) {
        uint32_t* d = u32(regs, *registers++);
        for (int i = 0; i < kLanes; ++i) d[i] = rounded[2 * i + j];
    }
}

// Instruction::small.
struct Shape {
    uint32_t a : 4, b : 4;            // indices into kElements
    uint32_t blocks : 2;              // of 8 rows
    uint32_t chunks : 4;              // registers of B
    uint32_t half_c : 1, half_d : 1;  // f16 accumulators
    uint32_t saturate : 1, unused : 15;
};
Shape shape_of(const Instruction& in) { return std::bit_cast<Shape>(in.small); }

// sums[row] += A * B, for one register of B and the registers of A beside it.
template <int elements, int blocks, class Vector, class Value>
void multiply(const Value* a, const Value* b, Vector* sums) {
    constexpr int kDepth = 4 * elements, kRows = blocks * kSide;
    Vector sum[kRows];
    for (int m = 0; m < kRows; ++m) sum[m] = sums[m];
    for (int k = 0; k < kDepth; ++k) {
        const Vector column = reinterpret_cast<const Vector*>(b)[k];
        for (int m = 0; m < kRows; ++m) sum[m] += a[m * kDepth + k] * column;
    }
    for (int m = 0; m < kRows; ++m) sums[m] = sum[m];
}

template <int elements>
void mma_float(const Instruction& in, std::byte* regs, uint32_t) {
    const Shape shape = shape_of(in);
    const uint32_t* registers = in.more;
    alignas(64) double a[2][kLanes * elements], b[kLanes * elements];
    alignas(64) Doubles sums[2 * kSide];
    const uint32_t *d = registers, *from_a = d + (shape.half_d ? 2 : 4), *from_b = from_a + 2 * shape.chunks,
                   *from_c = from_b + shape.chunks;
    for (int block = 0; block < 2; ++block)
        load_block(regs, from_c, shape.half_c, reinterpret_cast<double*>(sums + block * kSide));
    for (uint32_t chunk = 0; chunk < shape.chunks; ++chunk) {
        for (int block = 0; block < 2; ++block) kElements[shape.a].rows(u32(regs, *from_a++), a[block]);
        kElements[shape.b].columns(u32(regs, *from_b++), b);
        multiply<elements, 2>(a[0], b, sums);
    }
    for (int block = 0; block < 2; ++block) store_block(regs, d, shape.half_d, reinterpret_cast<double*>(sums + block * kSide));
}

template <int elements, int blocks>
void mma_integer(const Instruction& in, std::byte* regs, uint32_t) {
    const Shape shape = shape_of(in);
    alignas(64) int32_t a[blocks][kLanes * elements], b[kLanes * elements];
    alignas(64) Integers sums[blocks * kSide] = {};
    const uint32_t *d = in.more, *from_a = d + 2 * blocks, *from_b = from_a + blocks * shape.chunks, *c = from_b + shape.chunks;
    for (uint32_t chunk = 0; chunk < shape.chunks; ++chunk) {
        for (int block = 0; block < blocks; ++block) kElements[shape.a].rows(u32(regs, *from_a++), a[block]);
        kElements[shape.b].columns(u32(regs, *from_b++), b);
        multiply<elements, blocks>(a[0], b, sums);
    }
    const auto* values = reinterpret_cast<const int32_t*>(sums);
    for (int block = 0; block < blocks; ++block) {
        for (int j = 0; j < 2; ++j) {
            const uint32_t* from = u32(regs, c[2 * block + j]);
            uint32_t* to = u32(regs, d[2 * block + j]);
            for (int i = 0; i < kLanes; ++i) {
                const int64_t sum = int64_t{values[(block * kLanes + i) * 2 + j]} + static_cast<int32_t>(from[i]);
                to[i] = static_cast<uint32_t>(shape.saturate ? std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX) : sum);
            }
        }
    }
}

void mma_double(const Instruction& in, std::byte* regs, uint32_t) {
    const Shape shape = shape_of(in);
    const uint32_t *d = in.more, *a = d + 2 * shape.blocks, *b = a + shape.blocks * shape.chunks, *c = b + shape.chunks;
    double sums[2][2][kLanes];
    for (uint32_t block = 0; block < shape.blocks; ++block) {
        for (int j = 0; j < 2; ++j) {
            for (int i = 0; i < kLanes; ++i) {
                double sum = as_double(u64(regs, c[2 * block + j])[i]);
                const int row = i / 4, column = i % 4 * 2 + j;
                for (uint32_t k = 0; k < 4 * shape.chunks; ++k) {
                    const double x = as_double(u64(regs, a[k / 4 * shape.blocks + block])[row * 4 + k % 4]);
                    sum = std::fma(x, as_double(u64(regs, b[k / 4])[column * 4 + k % 4]), sum);
                }
                sums[block][j][i] = sum;
            }
        }
    }
    for (uint32_t r = 0; r < 2 * shape.blocks; ++r)
        for (int i = 0; i < kLanes; ++i) u64(regs, d[r])[i] = bits_of(sums[r / 2][r % 2][i]);
}

// d: row i / 4 of the transposed matrix, its elements i % 4 * 2 and the next.
void movmatrix(const Instruction& in, std::byte* regs, uint32_t) {
    const uint32_t* a = u32(regs, in.a);
    uint32_t* d = u32(regs, in.d);
    uint32_t matrix[kSide][kSide];
    for (int i = 0; i < kLanes; ++i)
        for (int j = 0; j < 2; ++j) matrix[i / 4][i % 4 * 2 + j] = a[i] >> 16 * j & 0xffff;
    for (int i = 0; i < kLanes; ++i) d[i] = matrix[i % 4 * 2][i / 4] | matrix[i % 4 * 2 + 1][i / 4] << 16;
}

struct Decoder {
    const ptx::Statement& statement;
    Operands& operands;
    Instruction& out;

    void require(bool known) const { Form(statement, operands, out).require(known); }

    void decode_movmatrix() {
        static constexpr std::string_view kForm[] = {"sync", "aligned", "m8n8", "trans", "b16"};
        const std::vector<std::string>& m = statement.modifiers;
        require(std::equal(m.begin(), m.end(), std::begin(kForm), std::end(kForm)) && statement.operands.size() == 2);
        out.d = operands.destination(statement.operands[0], 32);
        out.a = operands.source(statement.operands[1], 32);
        require(out.d != kNone);
        out.run = &movmatrix;
        out.flags |= kCollective;
    }

    // Appends the registers of an operand: {r, ...}, or r alone.
    uint32_t* append(uint32_t* to, const ptx::Operand& operand, size_t count, int bits, bool destination) {
        const bool vector = operand.kind == ptx::Operand::Kind::vector;
        require(vector ? operand.parts.size() == count : count == 1);
        for (size_t i = 0; i < count; ++i) {
            const ptx::Operand& part = vector ? operand.parts[i] : operand;
            *to = destination ? operands.destination(part, bits) : operands.source(part, bits);
            require(*to != kNone);
            ++to;
        }
        return to;
    }

    void finish(Alu run, Shape shape, int bits, size_t d, size_t c) {
        require(statement.operands.size() == 4);
        const size_t a = shape.blocks * shape.chunks, b = shape.chunks;
        static_assert(sizeof(Shape) == sizeof(out.small));
        uint32_t* at = operands.list(d + a + b + c);
        out.more = at;
        at = append(at, statement.operands[0], d, bits, true);
        at = append(at, statement.operands[1], a, bits, false);
        at = append(at, statement.operands[2], b, bits, false);
        append(at, statement.operands[3], c, bits, false);
        out.run = run;
        out.small = std::bit_cast<uint32_t>(shape);
        out.flags |= kCollective;
    }

    void decode_mma() {
        const std::vector<std::string>& m = statement.modifiers;
        size_t next = 0;
        const auto take = [&](std::string_view name) {
            const bool there = next < m.size() && m[next] == name;
            next += there;
            return there;
        };
        require(take("sync"));
        require(take("aligned") && next < m.size());
        struct Size {
            std::string_view name;
            uint32_t rows, k;
        };
        static constexpr Size kSizes[] = {{"m8n8k4", 8, 4},   {"m8n8k16", 8, 16},   {"m8n8k32", 8, 32},   {"m16n8k4", 16, 4},
                                          {"m16n8k8", 16, 8}, {"m16n8k16", 16, 16}, {"m16n8k32", 16, 32}, {"m16n8k64", 16, 64}};
        const Size* size = std::find_if(std::begin(kSizes), std::end(kSizes), [&](const Size& s) { return s.name == m[next]; });
        require(size != std::end(kSizes));
        ++next;
        require(take("row") && take("col"));
        const bool kind = take("kind::f8f6f4"), saturate = take("satfinite");
        require(m.size() >= next + 4);
        const std::string_view type_d = m[next], type_a = m[next + 1], type_b = m[next + 2], type_c = m[next + 3];
        next += 4;
        Shape shape = {};
        shape.blocks = size->rows / kSide;
        shape.saturate = saturate;

        if (type_a == "f64") {
            require(type_b == "f64" && type_c == "f64" && type_d == "f64" && !kind && !saturate);
            take("rn");
            require(next == m.size() && size->k <= 16 && (size->rows == 16 || size->k == 4));
            require(operands.target() >= (size->rows == 16 ? 90 : 80));
            shape.chunks = size->k / 4;
            return finish(&mma_double, shape, 64, 2 * shape.blocks, 2 * shape.blocks);
        }

        require(next == m.size());
        const auto find = [&](std::string_view name) {
            const Element* e =
                std::find_if(std::begin(kElements), std::end(kElements), [&](const Element& x) { return x.name == name; });
            require(e != std::end(kElements) && operands.target() >= e->target);
            return static_cast<uint32_t>(e - kElements);
        };
        shape.a = find(type_a);
        shape.b = find(type_b);
        const Element &a = kElements[shape.a], &b = kElements[shape.b];
        const uint32_t depth = 4 * 32 / static_cast<uint32_t>(a.pitch);  // of k in a register
        require(a.pitch == b.pitch && size->k % depth == 0 && size->k / depth <= 2);
        shape.chunks = size->k / depth;

        if (type_d == "s32") {
            const auto integer = [](std::string_view name) { return name[0] == 's' || name[0] == 'u'; };
            require(type_c == "s32" && integer(type_a) && integer(type_b) && !kind);
            require(size->rows == 16 || shape.chunks == 1);
            Alu run = a.pitch == 8       ? size->rows == 16 ? &mma_integer<4, 2> : &mma_integer<4, 1>
                      : size->rows == 16 ? &mma_integer<8, 2>
                                         : &mma_integer<8, 1>;
            return finish(run, shape, 32, 2 * shape.blocks, 2 * shape.blocks);
        }

        const bool eight = a.kind && b.kind;
        require(eight || (shape.a == shape.b && shape.a < 3));
        require(!saturate && size->rows == 16);
        require(kind ? eight && size->k == 32 && operands.target() >= 120 : a.target < 120 && b.target < 120);
        shape.half_c = type_c == "f16";
        shape.half_d = type_d == "f16";
        require((shape.half_c || type_c == "f32") && (shape.half_d || type_d == "f32"));
        require(shape.half_c == shape.half_d && (!shape.half_d || eight || type_a == "f16"));
        Alu run = a.pitch == 32 ? &mma_float<1> : a.pitch == 16 ? &mma_float<2> : &mma_float<4>;
        finish(run, shape, 32, shape.half_d ? 2 : 4, shape.half_c ? 2 : 4);
    }
};

}  // namespace

bool decode_mma(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    Decoder decoder{statement, operands, out};
    if (statement.opcode == "mma") {
        decoder.decode_mma();
    } else if (statement.opcode == "movmatrix") {
        decoder.decode_movmatrix();
    } else if (statement.opcode == "wmma") {
        decoder.require(false);  // the fragments' layout is unspecified
    } else {
        return false;
    }
    return true;
}

}  // namespace vgpu
