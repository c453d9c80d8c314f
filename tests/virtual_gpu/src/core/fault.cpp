#include "core/fault.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/json.h"

namespace vgpu {
namespace {

std::string source(const Place& p) {
    std::string text = p.file.empty() ? "PTX line " + std::to_string(p.ptx_line) : p.file + ":" + std::to_string(p.line);
    for (const Place::Caller& c : p.callers) text += ", inlined at " + c.file + ":" + std::to_string(c.line);
    return text;
}

std::string hex(uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

std::string json_of(const Place& p) {
    std::string callers;
    for (const Place::Caller& c : p.callers)
        callers += (callers.empty() ? "" : ",") + ("{\"file\":" + quoted(c.file) + ",\"line\":" + std::to_string(c.line) + "}");
    return "\"kernel\":" + quoted(p.kernel) + ",\"file\":" + quoted(p.file) + ",\"line\":" + std::to_string(p.line) +
           ",\"ptx_line\":" + std::to_string(p.ptx_line) + ",\"instruction\":" + quoted(p.instruction) + ",\"callers\":[" +
           callers + "],\"block\":" + triple(p.block) + ",\"thread\":" + triple(p.thread);
}

std::string who(const Place& p) { return "block " + triple(p.block) + " thread " + triple(p.thread); }

void print(const Fault& f) {
    std::string text = "virtual GPU: " + f.kind + ": " + f.message + "\n";
    if (!f.at.kernel.empty())
        text += "  in " + f.at.kernel + " at " + source(f.at) + ", " + who(f.at) + "\n  " + f.at.instruction + "\n";
    if (f.has_address)
        text +=
            "  " + f.access + " at " + f.space + " " + hex(f.address) + (f.allocation.empty() ? "" : ": " + f.allocation) + "\n";
    if (f.has_other)
        text += "  other: " + f.other_access + " in " + f.other.kernel + " at " + source(f.other) + ", " + who(f.other) + "\n  " +
                f.other.instruction + "\n";
    std::fputs(text.c_str(), stderr);
}

}  // namespace

void Faults::add(Fault fault) {
    for (const Fault& f : faults_)
        if (f.kind == fault.kind && f.at.kernel == fault.at.kernel && f.at.ptx_line == fault.at.ptx_line &&
            f.message == fault.message && f.other.ptx_line == fault.other.ptx_line)
            return;
    if (faults_.size() >= kMost) return;
    const char* quiet = std::getenv("LLAMA_EXT_VGPU_QUIET");
    if (!quiet || std::strcmp(quiet, "1") != 0) print(fault);
    faults_.push_back(std::move(fault));
}

void Faults::clear() { faults_.clear(); }

std::string Faults::json() const {
    std::string out = "[";
    for (const Fault& f : faults_) {
        if (out.size() > 1) out += ",";
        out += "{\"kind\":" + quoted(f.kind) + ",\"message\":" + quoted(f.message) + "," + json_of(f.at);
        if (f.has_address)
            out += ",\"address\":" + quoted(hex(f.address)) + ",\"space\":" + quoted(f.space) +
                   ",\"access\":" + quoted(f.access) + ",\"allocation\":" + quoted(f.allocation);
        if (f.has_other) out += ",\"other\":{" + json_of(f.other) + ",\"access\":" + quoted(f.other_access) + "}";
        out += "}";
    }
    return out + "]";
}

}  // namespace vgpu
