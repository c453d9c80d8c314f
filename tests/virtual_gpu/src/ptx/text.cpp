// Statements as PTX again, for messages.
#include <cstdio>

#include "ptx/module.h"

namespace vgpu::ptx {

namespace {

void append_bits(std::string& out, const char* format, uint64_t bits) {
    char buffer[24];
    std::snprintf(buffer, sizeof buffer, format, static_cast<unsigned long long>(bits));
    out += buffer;
}

void append(std::string& out, const Operand& operand);

void append(std::string& out, const std::vector<Operand>& parts, std::string_view between) {
    for (size_t i = 0; i < parts.size(); ++i) {
        if (i) out += between;
        append(out, parts[i]);
    }
}

void append(std::string& out, const Operand& operand) {
    using Kind = Operand::Kind;
    if (operand.negated) out += '!';
    switch (operand.kind) {
        case Kind::name:
        case Kind::address:
            if (operand.kind == Kind::address) out += '[';
            out += operand.name;
            if (operand.name.empty())
                out += std::to_string(operand.value);
            else if (operand.value)
                out += '+' + std::to_string(static_cast<int64_t>(operand.value));
            if (operand.kind == Kind::address) out += ']';
            break;
        case Kind::integer:
            out += std::to_string(static_cast<int64_t>(operand.value));
            break;
        case Kind::f32:
            append_bits(out, "0f%08llX", operand.value);
            break;
        case Kind::f64:
            append_bits(out, "0d%016llX", operand.value);
            break;
        case Kind::vector:
            out += '{';
            append(out, operand.parts, ", ");
            out += '}';
            break;
        case Kind::list:
            out += '(';
            append(out, operand.parts, ", ");
            out += ')';
            break;
        case Kind::pair:
            append(out, operand.parts, "|");
            break;
        case Kind::sink:
            out += '_';
            break;
    }
}

}  // namespace

std::string Statement::text() const {
    std::string out;
    if (!guard.empty()) out += (guard_negated ? "@!" : "@") + guard + ' ';
    out += opcode;
    for (const std::string& m : modifiers) out += '.' + m;
    if (!operands.empty()) out += ' ';
    append(out, operands, ", ");
    out += ';';
    return out;
}

}  // namespace vgpu::ptx
