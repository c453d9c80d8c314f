// Faults put into words, and a launch's counters as JSON.
#include <algorithm>
#include <bit>
#include <map>

#include "core/json.h"
#include "core/machine.h"

namespace vgpu {

Place Machine::place(const Warp& warp, uint32_t pc, uint32_t lane) const {
    const Block& block = *warp.block;
    const Kernel& kernel = *block.grid->kernel;
    Place p;
    p.kernel = kernel.info.name;
    if (pc < kernel.statements.size()) {
        const ptx::Statement& s = *kernel.statements[pc];
        const auto& files = kernel.module->files;
        if (s.where.file >= 0 && static_cast<size_t>(s.where.file) < files.size())
            p.file = files[static_cast<size_t>(s.where.file)];
        p.line = s.where.line;
        p.ptx_line = s.line;
        p.instruction = s.text();
        bool outside = false;
        for (int32_t f = s.frame; f >= 0; f = kernel.module->frames[static_cast<size_t>(f)].caller) {
            const ptx::Location& here = kernel.module->frames[static_cast<size_t>(f)].here;
            if (outside && here.file >= 0 && static_cast<size_t>(here.file) < files.size())
                p.callers.push_back({files[static_cast<size_t>(here.file)], here.line});
            outside |= here.file == s.where.file && here.line == s.where.line;
        }
    }
    std::copy(block.id, block.id + 3, p.block);
    const uint32_t* size = block.grid->launch->block;
    const uint32_t thread = warp.index * 32 + lane;
    p.thread[0] = thread % size[0];
    p.thread[1] = thread / size[0] % size[1];
    p.thread[2] = thread / size[0] / size[1];
    return p;
}

// Of a past access, as far as its launch is still known.
Place Machine::place(const Event& event) const {
    for (const Grid* grid : active) {
        if (event.serial < grid->first_serial || event.serial > grid->last_serial) continue;
        Block block;
        block.grid = const_cast<Grid*>(grid);
        block.index = (event.serial - grid->first_serial) / grid->warps_per_block;
        const uint32_t* size = grid->launch->grid;
        block.id[0] = static_cast<uint32_t>(block.index % size[0]);
        block.id[1] = static_cast<uint32_t>(block.index / size[0] % size[1]);
        block.id[2] = static_cast<uint32_t>(block.index / size[0] / size[1]);
        Warp warp;
        warp.block = &block;
        warp.index = (event.serial - grid->first_serial) % grid->warps_per_block;
        return place(warp, event.pc, event.lane);
    }
    Place p;
    p.kernel = "an earlier launch";
    return p;
}

std::string Machine::describe(const Warp& warp, Where space, uint64_t address, uint32_t unit) const {
    const auto in = [&](const std::vector<Variable>& variables, const char* what) {
        const Variable* best = nullptr;
        uint64_t distance = UINT64_MAX;
        for (const Variable& v : variables) {
            const uint64_t end = uint64_t{v.begin} + v.bytes;
            const uint64_t d = address < v.begin ? v.begin - address : address + unit > end ? address + unit - end : 0;
            if (d < distance) {
                best = &v;
                distance = d;
            }
        }
        if (!best) return std::string(what) + " holds no variable";
        const uint64_t end = uint64_t{best->begin} + best->bytes;
        std::string where = address >= end          ? std::to_string(address - end) + " bytes past its end"
                            : address < best->begin ? std::to_string(best->begin - address) + " bytes before its begin"
                                                    : "at offset " + std::to_string(address - best->begin);
        return best->name + " (" + std::to_string(best->bytes) + " bytes of " + what + "), " + where;
    };
    const Kernel& kernel = *warp.block->grid->kernel;
    switch (space) {
        case Where::shared: {
            std::vector<Variable> variables = kernel.shared;
            const uint32_t dynamic = warp.block->grid->launch->dynamic_shared;
            if (dynamic) variables.push_back({"the dynamic array", kernel.dynamic_begin, dynamic});
            return in(variables, "shared memory");
        }
        case Where::local:
            return in(kernel.frame, "local memory");
        case Where::param:
            return "the kernel's parameters (" + std::to_string(kernel.info.parameter_bytes) + " bytes), at offset " +
                   std::to_string(address);
        default:
            return memory.describe(address, unit);
    }
}

// Records a fault and goes on; the launch will have failed.
void Machine::fault(Warp& warp, uint32_t pc, uint32_t lane, Fault f) {
    f.at = place(warp, pc, lane);
    raced = true;
    faults.add(std::move(f));
}

void Machine::stop(Warp& warp, uint32_t pc, uint32_t lane, Fault f, Outcome outcome) {
    fault(warp, pc, lane, std::move(f));
    throw Stop{outcome};
}

void Machine::race(Warp& warp, uint32_t pc, uint32_t lane, const Event& other, Where space, uint64_t address, uint32_t unit,
                   bool write, const char* why) {
    Fault f;
    f.kind = "race";
    f.has_other = true;
    f.other = place(other);
    f.other_access = std::string(other.strong ? "atomic or strong " : "") + (other.write ? "write" : "read");
    f.has_address = true;
    f.address = address;
    f.space = space == Where::shared ? "shared" : "global";
    f.access = std::string(write ? "write" : "read") + " of " + std::to_string(unit) + " bytes";
    f.allocation = describe(warp, space, address, unit);
    f.message = why ? why
                    : std::string("a ") + (write ? "write" : "read") + " and a " + (other.write ? "write" : "read") +
                          " of another thread that nothing orders";
    fault(warp, pc, lane, std::move(f));
}

void Machine::write_report(const Grid& grid) {
    const Kernel& kernel = *grid.kernel;
    const Counters& c = grid.counters;
    uint64_t instructions_total = 0, lane_instructions = 0, atomics = 0;
    std::map<std::string, uint64_t> kinds;
    std::map<std::pair<int32_t, int32_t>, std::pair<uint64_t, uint64_t>> lines;
    struct Sums {
        uint64_t bytes = 0, requests = 0, sectors = 0, unique = 0, ideal = 0, wavefronts = 0;
    } load, store;
    uint64_t conflicts = 0;
    std::string accesses;
    for (size_t pc = 0; pc < kernel.code.size(); ++pc) {
        if (!c.executed[pc]) continue;
        const ptx::Statement& s = *kernel.statements[pc];
        const Op op = static_cast<Op>(kernel.code[pc].opcode);
        instructions_total += c.executed[pc];
        lane_instructions += c.lanes[pc];
        kinds[s.opcode] += c.executed[pc];
        auto& line = lines[{s.where.file, s.where.line}];
        line.first += c.executed[pc];
        line.second += c.lanes[pc];
        const AccessCount& a = c.accesses[pc];
        if (!a.requests) continue;
        if (op == Op::atomic) atomics += a.requests;
        const bool writes = op == Op::store || op == Op::atomic || op == Op::store_matrix;
        Sums& sums = writes ? store : load;
        const Where space = static_cast<Where>(a.space);
        if (space == Where::global) {
            sums.bytes += a.bytes;
            sums.requests += a.requests;
            sums.sectors += a.sectors;
            sums.unique += a.unique;
            sums.ideal += a.sectors_ideal;
        } else if (space == Where::shared) {
            sums.wavefronts += a.wavefronts;
            conflicts += a.wavefronts - a.wavefronts_ideal;
        } else {
            continue;
        }
        if (!accesses.empty()) accesses += ",";
        const uint32_t unit = c.lanes[pc] ? static_cast<uint32_t>(a.bytes / c.lanes[pc]) : 0;
        accesses += "{\"ptx_line\":" + std::to_string(s.line) + ",\"line\":" + std::to_string(s.where.line) +
                    ",\"opcode\":" + quoted(s.opcode) + ",\"instruction\":" + quoted(s.text()) +
                    ",\"space\":" + quoted(space == Where::shared ? "shared" : "global") +
                    ",\"bytes_per_lane\":" + std::to_string(unit) + ",\"requests\":" + std::to_string(a.requests) +
                    ",\"bytes\":" + std::to_string(a.bytes) + ",\"sectors\":" + std::to_string(a.sectors) +
                    ",\"sectors_ideal\":" + std::to_string(a.sectors_ideal) + ",\"sectors_unique\":" + std::to_string(a.unique) +
                    ",\"wavefronts\":" + std::to_string(a.wavefronts) +
                    ",\"wavefronts_ideal\":" + std::to_string(a.wavefronts_ideal) + "}";
    }
    const auto field = [](const char* name, uint64_t value) { return ",\"" + std::string(name) + "\":" + std::to_string(value); };
    std::string out = "{\"kernel\":" + quoted(kernel.info.name) + ",\"grid\":" + triple(grid.launch->grid) +
                      ",\"block\":" + triple(grid.launch->block);
    out += field("static_shared", kernel.info.static_shared) + field("dynamic_shared", grid.launch->dynamic_shared);
    out += field("instructions", instructions_total) + field("lane_instructions", lane_instructions);
    out += ",\"by_kind\":{";
    bool first = true;
    for (const auto& [kind, n] : kinds) {
        out += (first ? "" : ",") + quoted(kind) + ":" + std::to_string(n);
        first = false;
    }
    out += "}";
    out += field("global_load_bytes", load.bytes) + field("global_load_requests", load.requests) +
           field("global_load_sectors_requested", load.sectors) + field("global_load_sectors_unique", load.unique) +
           field("global_load_sectors_ideal", load.ideal);
    out += field("global_store_bytes", store.bytes) + field("global_store_requests", store.requests) +
           field("global_store_sectors_requested", store.sectors) + field("global_store_sectors_ideal", store.ideal);
    out += field("shared_load_wavefronts", load.wavefronts) + field("shared_store_wavefronts", store.wavefronts) +
           field("shared_bank_conflicts", conflicts) + field("barriers", c.barriers) + field("atomics", atomics);
    out += ",\"lines\":[";
    first = true;
    for (const auto& [where, n] : lines) {
        const auto& files = kernel.module->files;
        const std::string file = where.first >= 0 && static_cast<size_t>(where.first) < files.size()
                                     ? files[static_cast<size_t>(where.first)]
                                     : std::string();
        out += (first ? "" : ",") +
               ("{\"file\":" + quoted(file) + ",\"line\":" + std::to_string(where.second) +
                ",\"instructions\":" + std::to_string(n.first) + ",\"lane_instructions\":" + std::to_string(n.second) + "}");
        first = false;
    }
    out += "],\"accesses\":[" + accesses + "]}";
    if (!report.empty()) report += ",";
    report += out;
}

}  // namespace vgpu
