#include "cuda/plan.h"

#include <sstream>

namespace llama_ext::cuda {
namespace {

void print(std::ostream& out, Address address) {
    if (address.value)
        out << "0x" << std::hex << address.value << std::dec;
    else
        out << "null";
}
void print(std::ostream& out, int32_t value) { out << value; }
void print(std::ostream& out, int64_t value) { out << value; }
void print(std::ostream& out, float value) { out << value; }

// "6" or "6 x 2"
void print(std::ostream& out, const std::array<uint32_t, 3>& size) {
    out << size[0];
    if (size[1] > 1 || size[2] > 1) out << " x " << size[1];
    if (size[2] > 1) out << " x " << size[2];
}

}  // namespace

std::string to_string(const Launch& launch) {
    std::ostringstream out;
    if (!launch.label.empty()) out << launch.label << ": ";
    out << launch.kernel << "<<<";
    print(out, launch.grid);
    out << ", ";
    print(out, launch.block);
    out << ", " << launch.shared_bytes << " B>>>(";
    for (size_t i = 0; i < launch.arguments.size(); ++i) {
        out << (i ? ", " : "") << launch.arguments[i].name << " = ";
        std::visit([&out](auto value) { print(out, value); }, launch.arguments[i].value);
    }
    out << ")" << (launch.programmatic ? " programmatic" : "");
    return out.str();
}

std::string to_string(const Plan& plan) {
    std::string text;
    for (const Launch& launch : plan.launches) text += to_string(launch) + "\n";
    return text;
}

}  // namespace llama_ext::cuda
