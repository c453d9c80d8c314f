// Names of a function body's nested scopes. PTX lets a "{...}" declare names again; a Function has one flat list of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "ptx/module.h"

namespace vgpu::ptx {

// What the parser notes while it reads one body.
class Scopes {
public:
    static constexpr uint32_t kFunction = 0;  // the body itself

    void open(const Function& f);
    void close(const Function& f);  // the innermost
    size_t depth() const { return open_.size(); }

    // The element that was just appended to one of the function's lists belongs to the innermost scope.
    void declared_register(const Function& f, int line) { note(registers_, f, line); }
    void declared_variable(const Function& f, int line) { note(variables_, f, line); }
    void declared_label(const Function& f, int line) { note(labels_, f, line); }
    void declared_targets(const Function& f, int line) { note(targets_, f, line); }

    // At the end of the body: makes every name unique in the function by giving those of nested scopes that clash another one,
    // "name$scope". A nested name also gives way to one that the module has: `in_module` says so.
    // Throws SyntaxError if one scope declares a name twice.
    void resolve(Function& f, const std::function<bool(std::string_view)>& in_module) const;

private:
    struct Mark {
        size_t code, variables, targets;
    };
    struct Scope {
        Mark begin, end;
    };
    struct Declared {
        uint32_t scope;
        uint32_t from;  // the first statement that may use the name; a label may be used before it stands
        int line;
    };
    static Mark mark(const Function& f) { return {f.code.size(), f.variables.size(), f.targets.size()}; }
    void note(std::vector<Declared>& list, const Function& f, int line) {
        list.push_back({open_.empty() ? kFunction : open_.back(), static_cast<uint32_t>(f.code.size()), line});
    }

    std::vector<Scope> scopes_;   // number n is scopes_[n - 1], in the order in which they open
    std::vector<uint32_t> open_;  // innermost last
    std::vector<Declared> registers_, variables_, labels_, targets_;
};

}  // namespace vgpu::ptx
