// Measures the pieces that a step is made of, each alone: products of one row and of many in every format, attention over a
// cache in every format, packing, the barrier, reading memory. Prints one JSON object a line. Built and run by bench/kernels.py.
#include "cpu/kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu/memory.h"
#include "cpu/team.h"

using namespace llama_ext;
using namespace llama_ext::cpu;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Median seconds of one call, over `runs` runs that each last a few milliseconds.
double median_seconds(const std::function<void()>& call, int runs = 15) {
    call();
    int repeat = 1;
    for (auto start = Clock::now(); seconds_since(start) < 2e-3; ++repeat) call();
    std::vector<double> seconds;
    for (int i = 0; i < runs; ++i) {
        const auto start = Clock::now();
        for (int j = 0; j < repeat; ++j) call();
        seconds.push_back(seconds_since(start) / repeat);
    }
    std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
    return seconds[static_cast<size_t>(runs / 2)];
}

struct Input {
    std::vector<float> f32;
    std::vector<Q15Block> q15;
    std::vector<Bf16Pair> bf16;
    Activation view;

    Input(const Kernels& kernels, int64_t rows, int64_t cols, bool coarse)
        : f32(static_cast<size_t>(rows * cols)),
          q15(f32.size() / 32),
          bf16(f32.size() / 2 + static_cast<size_t>(kBf16Tile * cols)) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        for (float& x : f32) x = normal(random);
        for (int64_t r = 0; r < rows; ++r) {
            const float* row = f32.data() + r * cols;
            kernels.quantize_q15(row, cols, q15.data() + r, rows, coarse);
            kernels.round_bf16(row, cols, bf16.data() + bf16_offset(r, cols), kBf16Tile);
        }
        view = {f32.data(), q15.data(), bf16.data(), rows};
    }
};

// Random bytes with every 16-bit pattern in the scales' places small and finite would need each format's layout; speed does
// not depend on the values as long as they are neither NaN nor denormal, so bytes are drawn from a range that gives neither.
void fill(std::byte* p, size_t bytes) {
    std::mt19937 random(2);
    for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<std::byte>(0x20 + random() % 16);
}

void products(const Kernels& kernels, Team& team, int64_t cols, size_t bytes, int64_t rows, bool coarse = false) {
    const Input input(kernels, rows, cols, coarse);
    std::vector<std::vector<float>> out(static_cast<size_t>(team.size()),
                                        std::vector<float>(static_cast<size_t>(kGroupsAtOnce * rows) * kGroup));
    for (int f = 0; f < kFormats; ++f) {
        const Format format = static_cast<Format>(f);
        const ProductFn product = coarse && format == Format::bf16 ? kernels.bf16_product : kernels.products[f];
        if (!product) continue;
        PackedWeight w{format, 0, cols, 0, packed_group_bytes(format, cols), nullptr};
        w.groups = std::max<int64_t>(team.size(), static_cast<int64_t>(bytes / w.group_bytes));
        w.rows = w.groups * kGroup;
        const Pages pages(static_cast<size_t>(w.groups) * w.group_bytes, Pages::Size::huge);
        fill(pages.data(), pages.bytes());
        w.data = pages.data();
        const double seconds = median_seconds(
            [&] {
                team.run([&](int member) {
                    const Share mine = share(w.groups, member, team.size());
                    for (int64_t g = mine.begin; g < mine.end; g += kGroupsAtOnce)
                        product(w, g, std::min(kGroupsAtOnce, mine.end - g), input.view, 0, rows,
                                out[static_cast<size_t>(member)].data());
                });
            },
            7);
        std::printf(
            "{\"what\": \"%s\", \"format\": \"%s\", \"simd\": \"%s\", \"rows\": %ld, \"cols\": %ld, \"bytes\": %zu, "
            "\"threads\": %d, "
            "\"seconds\": %.3e, \"gb_per_s\": %.2f, \"gmac_per_s\": %.2f}\n",
            coarse ? "coarse product" : "product", std::string(info(format).name).c_str(), kernels.name, static_cast<long>(rows),
            static_cast<long>(cols), pages.bytes(), team.size(), seconds, static_cast<double>(pages.bytes()) / seconds / 1e9,
            static_cast<double>(w.rows * cols * rows) / seconds / 1e9);
        std::fflush(stdout);
    }
}

// One decoded token over `slots` slots, without the merging of the blocks: 8 key-value heads of 128, 4 query heads each, the
// attention of a layer of Llama 3 8B. `layers` caches take turns, as a model's do.
void attention(const Kernels& kernels, Team& team, int64_t slots, int layers) {
    constexpr int kKvHeads = 8, kGroup = 4, kHeadDim = 128;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const int64_t blocks = slots / kKeyBlock;
    std::vector<float> q(kKvHeads * kGroup * kHeadDim), k(kHeadDim), v(kHeadDim);
    for (float& x : q) x = normal(random) / 12;
    static constexpr std::pair<CacheFormat, const char*> kFormatNames[] = {
        {CacheFormat::f32, "f32"}, {CacheFormat::f16, "f16"}, {CacheFormat::bf16, "bf16"}, {CacheFormat::q8_0, "q8_0"}};
    for (const auto& [format, format_name] : kFormatNames) {
        const size_t half = kKvHeads * static_cast<size_t>(slots) * cache_row_bytes(format, kHeadDim);
        const Pages pages(2 * half * static_cast<size_t>(layers), Pages::Size::normal);
        std::vector<CacheView> caches;
        for (int layer = 0; layer < layers; ++layer) {
            std::byte* keys = pages.data() + 2 * half * static_cast<size_t>(layer);
            caches.push_back({format, kKvHeads, kHeadDim, slots, slots, keys, keys + half});
            for (int head = 0; head < kKvHeads; ++head) {
                for (int64_t slot = 0; slot < slots; ++slot) {
                    if (slot % 64 == 0) {
                        for (float& x : k) x = normal(random);
                        for (float& x : v) x = normal(random);
                    }
                    kernels.append(caches.back(), head, slot, k.data(), v.data());
                }
            }
        }
        std::vector<std::vector<float>> out(static_cast<size_t>(team.size()), std::vector<float>(kGroup * kHeadDim));
        const double seconds = median_seconds(
                                   [&] {
                                       team.run([&](int member) {
                                           const Share mine = share(blocks * kKvHeads, member, team.size());
                                           Query query[kGroup];
                                           Partial partial[kGroup];
                                           for (const CacheView& cache : caches) {
                                               for (int64_t n = mine.begin; n < mine.end; ++n) {
                                                   const int head = static_cast<int>(n / blocks);
                                                   for (int j = 0; j < kGroup; ++j) {
                                                       query[j] = {q.data() + (head * kGroup + j) * kHeadDim, {0, slots - 1}};
                                                       partial[j].values = out[static_cast<size_t>(member)].data() + j * kHeadDim;
                                                   }
                                                   kernels.attend(cache, head, n % blocks, query, kGroup, partial);
                                               }
                                           }
                                       });
                                   },
                                   7) /
                               layers;
        std::printf(
            "{\"what\": \"attention\", \"format\": \"%s\", \"simd\": \"%s\", \"slots\": %ld, \"bytes\": %zu, \"threads\": %d, "
            "\"seconds\": %.3e, \"gb_per_s\": %.2f}\n",
            format_name, kernels.name, static_cast<long>(slots), 2 * half, team.size(), seconds,
            static_cast<double>(2 * half) / seconds / 1e9);
        std::fflush(stdout);
    }
}

void pack(size_t bytes) {
    for (int f = 0; f < kFormats; ++f) {
        const Format format = static_cast<Format>(f);
        const int64_t cols = 2048;
        const size_t group = packed_group_bytes(format, cols);
        std::vector<std::byte> source(bytes / group * group), out(source.size());
        fill(source.data(), source.size());
        const double seconds = median_seconds([&] {
            for (size_t at = 0; at < source.size(); at += group)
                pack_group(format, cols, source.data() + at, kGroup, out.data() + at);
        });
        std::printf(
            "{\"what\": \"pack\", \"format\": \"%s\", \"bytes\": %zu, \"threads\": 1, \"seconds\": %.3e, \"gb_per_s\": %.2f}\n",
            std::string(info(format).name).c_str(), source.size(), seconds, static_cast<double>(source.size()) / seconds / 1e9);
    }
}

void barrier(Team& team) {
    constexpr int kBarriers = 1000;
    const double seconds = median_seconds([&] {
        team.run([&](int) {
            for (int i = 0; i < kBarriers; ++i) team.barrier();
        });
    });
    std::printf("{\"what\": \"barrier\", \"threads\": %d, \"seconds\": %.3e}\n", team.size(), seconds / kBarriers);
}

void read(const Kernels& kernels, Team& team, size_t bytes, Pages::Size size) {
    const Pages pages(bytes, size);
    std::memset(pages.data(), 1, bytes);
    std::atomic<uint64_t> total{0};
    const double seconds = median_seconds([&] {
        team.run([&](int member) {
            const Share mine = share(static_cast<int64_t>(bytes / 64), member, team.size());
            total += kernels.sum_lines(pages.data() + static_cast<size_t>(mine.begin) * 64, mine.end - mine.begin);
        });
    });
    std::printf(
        "{\"what\": \"read\", \"pages\": \"%s\", \"simd\": \"%s\", \"bytes\": %zu, \"threads\": %d, \"seconds\": %.3e, "
        "\"gb_per_s\": %.2f}\n",
        size == Pages::Size::huge ? "huge" : "normal", kernels.name, bytes, team.size(), seconds,
        static_cast<double>(bytes) / seconds / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    const Kernels& kernels = choose_kernels(argc > 2 ? argv[2] : nullptr);
    Team team(threads);
    constexpr size_t kCached = size_t{256} << 10, kMemory = size_t{256} << 20;  // a part of the L2 cache; several times any L3
    barrier(team);
    read(kernels, team, kMemory, Pages::Size::huge);
    read(kernels, team, kMemory, Pages::Size::normal);
    attention(kernels, team, 8192, 8);
    attention(kernels, team, 32768, 2);
    products(kernels, team, 2048, kMemory, 1);
    products(kernels, team, 2048, kCached * static_cast<size_t>(threads), 1);
    products(kernels, team, 2048, kCached * static_cast<size_t>(threads), 256);
    products(kernels, team, 2048, kCached * static_cast<size_t>(threads), 256, true);
    pack(kMemory / 8);
}
