// printf and assert of device code.
#include <cstdio>
#include <cstring>

#include "core/machine.h"

namespace vgpu {
namespace {

uint64_t pointer(const Warp& warp, uint32_t lane, uint32_t offset) {
    uint64_t value;
    std::memcpy(&value, warp.frame.data() + size_t{lane} * warp.block->grid->kernel->frame_bytes + offset, 8);
    return value;
}

}  // namespace

// A string in device memory; shorter where it runs into what may not be read.
std::string Machine::text(uint64_t address, size_t most) const {
    std::string out;
    for (; out.size() < most && memory.inside(address) && (*memory.shadow(address) & kReady) == kReady; ++address) {
        const char c = *reinterpret_cast<const char*>(address);
        if (c == 0) break;
        out += c;
    }
    return out;
}

void Machine::print(Warp& warp, const Instruction& in, uint32_t lane) {
    const Kernel& kernel = *warp.block->grid->kernel;
    const CallSite& site = kernel.calls[in.small];
    const std::string format = text(pointer(warp, lane, site.format), 4096);
    // The arguments: 4-byte integers, everything else 8 bytes, each at its own alignment.
    uint64_t at = pointer(warp, lane, site.arguments) - windows.local;
    const auto take = [&](size_t bytes) {
        at = (at + bytes - 1) / bytes * bytes;
        uint64_t value = 0;
        if (at + bytes <= kernel.frame_bytes)
            std::memcpy(&value, warp.frame.data() + size_t{lane} * kernel.frame_bytes + at, bytes);
        at += bytes;
        return value;
    };
    std::string out;
    for (size_t i = 0; i < format.size(); ++i) {
        if (format[i] != '%' || i + 1 >= format.size()) {
            out += format[i];
            continue;
        }
        size_t end = i + 1;
        while (end < format.size() && std::strchr("-+ #0123456789.*hlLzjt", format[end])) ++end;
        std::string spec = format.substr(i, end - i);
        const char conversion = end < format.size() ? format[end] : '%';
        i = end;
        const bool wide =
            spec.find('l') != std::string::npos || spec.find('z') != std::string::npos || spec.find('j') != std::string::npos;
        std::erase_if(spec, [](char c) { return std::strchr("hlLzjt*", c) != nullptr; });
        char buffer[512];
        buffer[0] = 0;
        switch (conversion) {
            case '%':
                out += '%';
                continue;
            case 'd':
            case 'i': {
                const uint64_t v = take(wide ? 8 : 4);
                const long long value = wide ? static_cast<long long>(v) : static_cast<int32_t>(v);
                std::snprintf(buffer, sizeof buffer, (spec + "lld").c_str(), value);
                break;
            }
            case 'u':
            case 'x':
            case 'X':
            case 'o':
                std::snprintf(buffer, sizeof buffer, (spec + "ll" + conversion).c_str(),
                              static_cast<unsigned long long>(take(wide ? 8 : 4)));
                break;
            case 'c':
                std::snprintf(buffer, sizeof buffer, (spec + "c").c_str(), static_cast<int>(take(4)));
                break;
            case 'p':
                std::snprintf(buffer, sizeof buffer, "0x%llx", static_cast<unsigned long long>(take(8)));
                break;
            case 's':
                out += text(take(8), 4096);
                continue;
            default: {
                double value;
                const uint64_t bits = take(8);
                std::memcpy(&value, &bits, 8);
                std::snprintf(buffer, sizeof buffer, (spec + conversion).c_str(), value);
            }
        }
        out += buffer;
    }
    std::fputs(out.c_str(), stdout);
    std::fflush(stdout);
    const int32_t result = 1;
    std::memcpy(warp.frame.data() + size_t{lane} * kernel.frame_bytes + site.out[0].to, &result, 4);
}

std::string Machine::assertion(Warp& warp, const Instruction& in, uint32_t lane) {
    const CallSite& site = warp.block->grid->kernel->calls[in.small];
    return text(pointer(warp, lane, site.format), 512);
}

}  // namespace vgpu
