#include "cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "program/file_map.h"

namespace llama_ext::cuda {
namespace {

constexpr size_t kStagingBytes = size_t{32} << 20;

// work(begin, end) over 0 .. count, on so many threads.
template <typename Work>
void shared_out(int threads, int64_t count, const Work& work) {
    const int64_t share = (count + threads - 1) / threads;
    std::vector<std::jthread> others;
    for (int t = 1; t < threads && t * share < count; ++t)
        others.emplace_back([&work, t, share, count] { work(t * share, std::min(count, (t + 1) * share)); });
    work(0, std::min(count, share));
}

// The bytes of a stack's parts while it is packed, and where each of its rows stands among them.
class Source {
public:
    explicit Source(const Stack& stack) : stack_(stack) {
        for (const WeightPtr& part : stack.parts) bytes_.push_back(part->fetch());
    }
    ~Source() {
        for (size_t i = 0; i < bytes_.size(); ++i)
            if (stack_.parts[i]->data) give_back(bytes_[i].data, stack_.parts[i]->bytes());
    }
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;

    const std::byte* row(int64_t row) const {
        size_t part = 0;
        if (stack_.order == Stack::Order::interleaved) {
            const int64_t count = static_cast<int64_t>(bytes_.size());
            part = static_cast<size_t>(row % count);
            row /= count;
        } else {
            while (row >= stack_.parts[part]->rows) row -= stack_.parts[part++]->rows;
        }
        return bytes_[part].data + static_cast<size_t>(row) * row_bytes(stack_.format(), stack_.cols());
    }

private:
    const Stack& stack_;
    std::vector<WeightBytes> bytes_;
};

}  // namespace

bool Stack::one_format() const {
    return std::all_of(parts.begin(), parts.end(), [this](const WeightPtr& part) { return part->format == parts[0]->format; });
}

int64_t Stack::rows() const {
    int64_t rows = 0;
    for (const WeightPtr& part : parts) rows += part->rows;
    return rows;
}

size_t Stack::bytes() const { return static_cast<size_t>(planes(format(), rows(), cols()).bytes); }

Weights::Weights(DevicePtr device, Stream& stream, int threads, size_t total, const std::function<void(size_t, size_t)>& progress)
    : device_(std::move(device)), stream_(stream), threads_(std::max(1, threads)), total_(total), progress_(progress) {}

Weights::~Weights() = default;

Matrix Weights::matrix(const Stack& stack, bool widen) {
    std::vector<const Weight*> key;
    for (const WeightPtr& part : stack.parts) key.push_back(part.get());
    const auto found = known_.find({key, widen});
    if (found != known_.end()) return found->second;
    const Format format = widen ? Format::f32 : stack.format();
    const Matrix matrix{format, stack.rows(), stack.cols(),
                        reserve(static_cast<size_t>(planes(format, stack.rows(), stack.cols()).bytes))};
    pack_to_device(stack, widen, matrix.base);
    known_.emplace(std::pair{std::move(key), widen}, matrix);
    return matrix;
}

void Weights::pack_to_device(const Stack& stack, bool widen, Address to) {
    const Source source(stack);
    const Format format = widen ? Format::f32 : stack.format();
    const int64_t rows = stack.rows(), cols = stack.cols();
    const PlaneRows row = plane_rows(format, cols);
    const Planes at = planes(format, rows, cols);
    const int64_t a_row = planes(format, 1, cols).bytes;
    const int64_t at_a_time = std::clamp<int64_t>(static_cast<int64_t>(kStagingBytes) / a_row, 1, rows);
    const size_t needed = static_cast<size_t>(planes(format, at_a_time, cols).bytes);
    if (!staging_ || staging_->bytes() < needed)
        staging_ = std::make_unique<HostMemory>(device_, std::max(needed, kStagingBytes));
    std::byte* const staged = staging_->data();
    for (int64_t first = 0; first < rows; first += at_a_time) {
        const int64_t count = std::min(at_a_time, rows - first);
        shared_out(threads_, count, [&](int64_t begin, int64_t end) {
            std::vector<float> wide(widen ? static_cast<size_t>(cols) : 0);
            for (int64_t r = begin; r < end; ++r) {
                const std::byte* bytes = source.row(first + r);
                if (widen) {
                    dequantize(stack.format(), bytes, cols, wide.data());
                    bytes = reinterpret_cast<const std::byte*>(wide.data());
                }
                pack_row(format, count, cols, r, bytes, staged);
            }
        });
        const Planes chunk = planes(format, count, cols);
        const auto copy = [&](int64_t plane, int64_t from, int64_t bytes) {
            if (bytes)
                stream_.write({to.value + static_cast<uint64_t>(plane + first * bytes)}, staged + from,
                              static_cast<size_t>(count * bytes));
        };
        copy(0, 0, row.quants);
        copy(at.high, chunk.high, row.high);
        copy(at.scales, chunk.scales, row.scales);
        copy(at.supers, chunk.supers, row.supers);
        report(static_cast<size_t>(chunk.bytes));
    }
}

void Weights::pack_to_host(const Stack& stack, std::byte* to) {
    const Source source(stack);
    const int64_t rows = stack.rows(), cols = stack.cols();
    shared_out(threads_, rows, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) pack_row(stack.format(), rows, cols, r, source.row(r), to);
    });
    report(stack.bytes());
}

Address Weights::reserve(size_t bytes) {
    memory_.push_back(std::make_unique<Memory>(device_, bytes));
    bytes_ += bytes;
    return {memory_.back()->address()};
}

void Weights::report(size_t bytes) {
    done_ += bytes;
    if (progress_) progress_(std::min(done_, total_), total_);
}

}  // namespace llama_ext::cuda
