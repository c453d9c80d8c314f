#include "driver/fatbin.h"

#include <cctype>
#include <charconv>
#include <cstring>
#include <vector>

#include "driver/state.h"
#include "driver/zstd.h"

namespace vgpu::driver {

namespace {

constexpr uint32_t kFatbin = 0xBA55ED50, kWrapper = 0x466243B1;
constexpr uint16_t kKindPtx = 1, kKindElf = 2;
constexpr uint32_t kCompressedLz4 = 0x2000, kCompressedZstd = 0x8000;
constexpr uint64_t kLargestEntry = uint64_t{1} << 30;  // of a plausible one, decompressed

// Bytes that may be read; every read outside of them refuses the image.
struct Bytes {
    const std::byte* data;
    size_t size;

    template <typename Value>
    Value at(size_t offset) const {
        if (offset > size || size - offset < sizeof(Value))
            refuse(CUDA_ERROR_INVALID_IMAGE, "the image ends in the middle of something");
        Value value;
        std::memcpy(&value, data + offset, sizeof value);
        return value;
    }
    Bytes part(size_t offset, size_t bytes) const {
        if (offset > size || size - offset < bytes) refuse(CUDA_ERROR_INVALID_IMAGE, "the image ends in the middle of something");
        return {data + offset, bytes};
    }
    std::string_view text() const {
        const std::string_view all(reinterpret_cast<const char*>(data), size);
        return all.substr(0, all.find('\0'));
    }
};

struct Target {
    int version = 0, number = 0;
    char suffix = 0;
};

// The .version and .target of PTX, which are its first two directives.
std::optional<Target> target_of(std::string_view text) {
    Target target;
    size_t at = 0;
    const auto skip = [&] {
        for (;;) {
            while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) ++at;
            if (text.substr(at, 2) == "//")
                at = std::min(text.find('\n', at), text.size());
            else if (text.substr(at, 2) == "/*")
                at = text.find("*/", at) == std::string_view::npos ? text.size() : text.find("*/", at) + 2;
            else
                return;
        }
    };
    const auto number = [&](int& out) {
        const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), out);
        at = static_cast<size_t>(end - text.data());
        return error == std::errc();
    };
    const auto take = [&](std::string_view word) {
        if (text.substr(at, word.size()) != word) return false;
        at += word.size();
        return true;
    };
    int major = 0, minor = 0;
    skip();
    if (!take(".version")) return std::nullopt;
    skip();
    if (!number(major) || !take(".") || !number(minor)) return std::nullopt;
    target.version = major * 10 + minor;
    skip();
    if (!take(".target")) return std::nullopt;
    skip();
    if (!take("sm_") || !number(target.number)) return std::nullopt;
    if (at < text.size() && (text[at] == 'a' || text[at] == 'f')) target.suffix = text[at];
    return target;
}

// Whether code for a target runs on the card: 'a' on exactly that one, 'f' within the family.
bool runs_on(const Target& target, const Profile& card) {
    const int number = card.major * 10 + card.minor;
    if (target.suffix == 'a') return target.number == number;
    if (target.suffix == 'f') return target.number / 10 == card.major && target.number <= number;
    return target.number <= number;
}

// CUDA 13.0 speaks PTX 9.0; 12.x speaks 8.x, 12.8 speaks 8.7.
int newest_ptx(int driver_version) {
    const int major = driver_version / 1000, minor = driver_version % 1000 / 10;
    if (major >= 13) return 90 + minor;
    if (major == 12) return 80 + (minor <= 6 ? std::min(minor, 5) : minor - 1);
    return 70 + minor;
}

void check_ptx(Image& image, const Profile& card, int driver_version) {
    const auto target = target_of(image.ptx);
    if (!target) refuse(CUDA_ERROR_INVALID_PTX, "PTX begins with .version and .target");
    image.version = target->version;
    image.target = target->number;
    if (target->version > newest_ptx(driver_version))
        refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "PTX " + std::to_string(target->version / 10) + "." +
                                                       std::to_string(target->version % 10) + " is newer than the driver");
    if (!runs_on(*target, card))
        refuse(CUDA_ERROR_INVALID_PTX, "PTX for sm_" + std::to_string(target->number) +
                                           (target->suffix ? std::string(1, target->suffix) : "") + " does not run on " +
                                           std::string(card.name));
}

// The registers a thread of each kernel: entries EIATTR_REGCOUNT of the section .nv.info, (symbol, registers). An entry is a
// format, an attribute and 16 bits: of format 4 the size of what follows, of the others the value itself.
void read_cubin(const Bytes& elf, std::map<std::string, int>& registers) {
    constexpr uint8_t kSized = 4, kRegisterCount = 0x2F;
    const auto offset = elf.at<uint64_t>(0x28);
    const auto each = elf.at<uint16_t>(0x3A), count = elf.at<uint16_t>(0x3C), names = elf.at<uint16_t>(0x3E);
    const auto header = [&](size_t index) { return elf.part(offset + index * each, each); };
    const auto content = [&](const Bytes& of) { return elf.part(of.at<uint64_t>(0x18), of.at<uint64_t>(0x20)); };
    const auto name = [&](const Bytes& strings, size_t at) {
        return strings.part(at, strings.size - std::min(at, strings.size)).text();
    };
    const Bytes strings = content(header(names));
    for (size_t i = 0; i < count; ++i) {
        const Bytes info_header = header(i);
        if (name(strings, info_header.at<uint32_t>(0)) != ".nv.info") continue;
        const Bytes symbols_header = header(info_header.at<uint32_t>(0x28));
        const Bytes symbols = content(symbols_header), symbol_names = content(header(symbols_header.at<uint32_t>(0x28)));
        const Bytes info = content(info_header);
        for (size_t at = 0; at < info.size;) {
            const auto format = info.at<uint8_t>(at), attribute = info.at<uint8_t>(at + 1);
            if (format == kSized && attribute == kRegisterCount) {
                const auto symbol = info.at<uint32_t>(at + 4);
                const std::string_view kernel = name(symbol_names, symbols.at<uint32_t>(size_t{symbol} * 24));
                registers[std::string(kernel)] = static_cast<int>(info.at<uint32_t>(at + 8) & 0xFF);
            }
            at += 4 + (format == kSized ? info.at<uint16_t>(at + 2) : 0);
        }
    }
}

Image read_fatbin(const Bytes& all, const Profile& card) {
    const auto header = all.at<uint16_t>(6);
    if (all.at<uint16_t>(4) != 1 || header < 16) refuse(CUDA_ERROR_INVALID_IMAGE, "a fatbin of an unknown version");
    const Bytes payload = all.part(header, all.at<uint64_t>(8));
    const auto number = static_cast<uint32_t>(card.major * 10 + card.minor);
    Image best;
    uint32_t best_number = 0;
    bool found = false, unreadable = false, cubin = false;
    for (size_t at = 0; at < payload.size;) {
        const auto kind = payload.at<uint16_t>(at);
        const auto entry_header = payload.at<uint32_t>(at + 4);
        const auto bytes = payload.at<uint64_t>(at + 8);
        if (entry_header < 64) refuse(CUDA_ERROR_INVALID_IMAGE, "an entry of a fatbin with too short a header");
        const Bytes entry = payload.part(at, entry_header);
        if (bytes > payload.size) refuse(CUDA_ERROR_INVALID_IMAGE, "an entry of a fatbin that is larger than the fatbin");
        const Bytes body = payload.part(at + entry_header, bytes);
        const auto architecture = entry.at<uint32_t>(28);
        const auto flags = entry.at<uint64_t>(40);
        const bool for_card = kind == kKindPtx ? architecture <= number : kind == kKindElf && architecture == number;
        std::string plain;
        Bytes content = body;
        if (for_card && flags & kCompressedZstd) {
            const uint64_t frame_bytes = entry.at<uint32_t>(16), plain_bytes = entry.at<uint64_t>(56);
            if (plain_bytes > kLargestEntry) refuse(CUDA_ERROR_INVALID_IMAGE, "an entry of a fatbin of a size that none has");
            const Bytes frame = body.part(0, frame_bytes);
            plain = decompress_zstd(frame.data, frame.size, plain_bytes);
            content = {reinterpret_cast<const std::byte*>(plain.data()), plain.size()};
        }
        if (for_card && flags & kCompressedLz4) {
            unreadable |= kind == kKindPtx;
        } else if (for_card && kind == kKindPtx) {
            const std::string_view text = content.text();
            const auto target = target_of(text);
            if (!target) refuse(CUDA_ERROR_INVALID_PTX, "an entry of a fatbin is said to be PTX, and is not");
            if (runs_on(*target, card) && (!found || architecture >= best_number)) {
                best.ptx = text;
                best_number = architecture;
                found = true;
            }
        } else if (for_card) {
            read_cubin(content, best.registers);
        }
        cubin |= for_card && kind == kKindElf;
        at += entry_header + bytes;
    }
    if (found) return best;
    if (unreadable)
        refuse(
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            "the fatbin's PTX is compressed in a way that the virtual GPU cannot read: compile with nvcc --compress-mode=size");
    refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, cubin
                                             ? "the fatbin has machine code for the card but no PTX, and the virtual GPU runs PTX"
                                             : "the fatbin has no PTX that runs on " + std::string(card.name));
}

}  // namespace

Image read_image(const void* data, std::optional<size_t> bytes, const Profile& card, int driver_version) {
    if (!data) refuse(CUDA_ERROR_INVALID_VALUE, "no image");
    const auto* begin = static_cast<const std::byte*>(data);
    // Whatever it is, it has at least one byte, and text ends with its nought: never look further than that.
    uint32_t magic = 0;
    for (size_t i = 0; i < 4 && (!bytes || i < *bytes); ++i) {
        const auto byte = std::to_integer<uint32_t>(begin[i]);
        if (byte == 0) break;
        magic |= byte << (8 * i);
    }
    Image image;
    if (magic == kWrapper) {
        struct Wrapper {
            uint32_t magic, version;
            const void* data;
            const void* file;
        } wrapper;
        if (bytes && *bytes < sizeof wrapper) refuse(CUDA_ERROR_INVALID_IMAGE, "the image ends in the middle of something");
        std::memcpy(&wrapper, data, sizeof wrapper);
        return read_image(wrapper.data, std::nullopt, card, driver_version);
    }
    if (magic == kFatbin) {
        const Bytes head{begin, bytes ? *bytes : 16};
        const uint64_t payload = head.at<uint64_t>(8);
        if (payload > uint64_t{1} << 40) refuse(CUDA_ERROR_INVALID_IMAGE, "a fatbin of a size that no fatbin has");
        image = read_fatbin({begin, bytes ? *bytes : static_cast<size_t>(head.at<uint16_t>(6) + payload)}, card);
    } else if (magic == 0x464C457F) {
        refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "a cubin without PTX beside it: the virtual GPU runs PTX");
    } else if (magic == 0) {
        refuse(CUDA_ERROR_INVALID_IMAGE, "an empty image");
    } else {
        const auto first = std::to_integer<unsigned char>(begin[0]);
        if (!std::isspace(first) && first != '.' && first != '/')
            refuse(CUDA_ERROR_INVALID_IMAGE, "neither PTX nor a fatbin nor a cubin");
        const auto* text = reinterpret_cast<const char*>(data);
        image.ptx.assign(text, bytes ? strnlen(text, *bytes) : std::strlen(text));
    }
    check_ptx(image, card, driver_version);
    return image;
}

}  // namespace vgpu::driver
