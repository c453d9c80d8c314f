#include <algorithm>
#include <unordered_map>
#include <utility>

#include "ptx/initializer.h"
#include "ptx/lexer.h"
#include "ptx/locations.h"
#include "ptx/module.h"
#include "ptx/scopes.h"

namespace vgpu::ptx {

namespace {

// A hostile text must not make the parser allocate much more than the text's own size, or recurse deeply.
constexpr size_t kMostScopes = 64;                  // nested
constexpr int kMostOperands = 8;                    // nested
constexpr size_t kMostDimensions = 8;               // of an array
constexpr uint64_t kMostBytes = uint64_t{1} << 40;  // of a variable
constexpr uint64_t kMostAlignment = uint64_t{1} << 20;
constexpr uint64_t kMostRange = uint64_t{1} << 20;      // %r<n>
constexpr uint64_t kFreeRegisters = uint64_t{1} << 16;  // registers of a module beyond one a character of its text
constexpr uint64_t kMostFiles = uint64_t{1} << 16;

int bytes_of(std::string_view type) {
    static const std::unordered_map<std::string_view, int> kBytes = {
        {"b8", 1},   {"u8", 1},  {"s8", 1},    {"b16", 2},   {"u16", 2},    {"s16", 2},  {"f16", 2},
        {"bf16", 2}, {"b32", 4}, {"u32", 4},   {"s32", 4},   {"f32", 4},    {"b64", 8},  {"u64", 8},
        {"s64", 8},  {"f64", 8}, {"b128", 16}, {"f16x2", 4}, {"bf16x2", 4}, {"pred", 0},
    };
    auto found = kBytes.find(type);
    return found == kBytes.end() ? -1 : found->second;
}

bool is_space(std::string_view word, Space* space) {
    static const std::unordered_map<std::string_view, Space> kSpaces = {
        {"reg", Space::reg},       {"param", Space::param},    {"shared", Space::shared},      {"local", Space::local},
        {"global", Space::global}, {"const", Space::constant}, {"shared::cta", Space::shared},
    };
    auto found = kSpaces.find(word);
    if (found == kSpaces.end()) return false;
    *space = found->second;
    return true;
}

class Parser {
public:
    explicit Parser(std::string_view text) : lex_(text), registers_left_(text.size() + kFreeRegisters) {}

    std::unique_ptr<Module> run() {
        while (!lex_.at_end()) module_item();
        if (!module_->version_major) lex_.fail("no .version");
        if (!module_->target) lex_.fail("no .target");
        resolve_aliases();
        locate();
        return std::move(module_);
    }

private:
    struct Element {  // of a declaration, before its names
        Type type;
        int vector = 1;
        uint64_t align = 0;
    };
    struct Symbol {
        bool function;
        size_t index;
    };

    // --- module scope ------------------------------------------------------------------------------------------------
    void module_item() {
        if (lex_.accept(';')) return;
        if (lex_.peek() == '@' && lex_.peek(1) == '@') return lex_.skip_line();  // @@DWARF, of old compilers
        if (lex_.peek() != '.') lex_.expected("a directive");
        int line = lex_.line();
        std::string_view word = lex_.dot_word();
        if (word == "version") return version();
        if (!module_->version_major) lex_.fail(line, "a module begins with .version");
        if (word == "target") return target();
        if (word == "address_size") {
            if (lex_.unsigned_integer("an address size") != 64) lex_.fail(line, "only .address_size 64 is known");
            return;
        }
        if (skipped_anywhere(word)) return;
        if (word == "alias") return alias();
        bool is_extern = false;
        word = after_linkage(word, &is_extern);
        if (word == "entry" || word == "func") return function(word == "entry", line);
        Space space;
        if (is_space(word, &space) && space != Space::reg && space != Space::param) {
            size_t first = module_->variables.size();
            declaration(space, is_extern, module_->variables, [] {});
            enter_variables(first, line);
            return;
        }
        lex_.fail(line, "unknown directive ." + std::string(word));
    }

    void version() {
        // not a number: 7.10 is not 7.1
        Number whole = lex_.version_part();
        lex_.expect('.');
        Number part = lex_.version_part();
        if (whole.bits == 0 || whole.bits > 999 || part.bits > 999) lex_.fail("no version of PTX");
        module_->version_major = static_cast<int>(whole.bits);
        module_->version_minor = static_cast<int>(part.bits);
    }

    void target() {
        int line = lex_.line();
        do {
            std::string_view word = lex_.name("a target");
            if (!word.starts_with("sm_")) continue;  // texmode_independent, debug, ...
            std::string_view digits = word.substr(3);
            int number = 0;
            auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
            if (error != std::errc() || number <= 0 || number > 9999) lex_.fail(line, "unknown target " + std::string(word));
            module_->target = number;
            module_->target_suffix = digits.substr(static_cast<size_t>(last - digits.data()));
        } while (lex_.accept(','));
        if (!module_->target) lex_.fail(line, "no sm_ target");
    }

    // Linkage directives, of which there may be several; the directive after them.
    std::string_view after_linkage(std::string_view word, bool* is_extern) {
        while (word == "visible" || word == "extern" || word == "weak" || word == "common") {
            *is_extern |= word == "extern";
            if (lex_.peek() != '.') lex_.expected("a directive");
            word = lex_.dot_word();
        }
        return word;
    }

    // Directives that may stand in a module and in a body, and mean nothing to whoever runs the code.
    bool skipped_anywhere(std::string_view word) {
        if (word == "file") {
            file();
        } else if (word == "loc") {
            locations_.read(lex_);
        } else if (word == "pragma") {
            lex_.skip_statement();
        } else if (word == "section") {
            if (lex_.peek() == '.')
                lex_.dot_word();
            else
                lex_.name("a section's name");
            if (lex_.peek() != '{') lex_.expected("'{'");
            lex_.skip_balanced('{', '}');
        } else {
            return false;
        }
        return true;
    }

    void file() {
        uint64_t number = lex_.unsigned_integer("a file's number", kMostFiles);
        std::string name = lex_.string();
        while (lex_.accept(',')) lex_.unsigned_integer("a file's time or size");
        if (module_->files.size() <= number) module_->files.resize(number + 1);
        module_->files[number] = std::move(name);
    }

    void alias() {
        int line = lex_.line();
        std::string name(lex_.name("an alias"));
        lex_.expect(',');
        std::string of(lex_.name("the function that it stands for"));
        lex_.expect(';');
        if (!aliases_.emplace(name, Alias{of, line}).second) lex_.fail(line, "'" + name + "' has two aliases");
    }

    void enter_variables(size_t first, int line) {
        auto& all = module_->variables;
        for (size_t i = first; i < all.size(); ++i) {
            auto [found, fresh] = symbols_.emplace(all[i].name, Symbol{false, i});
            if (fresh) continue;
            Variable* known = found->second.function ? nullptr : &all[found->second.index];
            if (!known || (!known->is_extern && !all[i].is_extern)) lex_.fail(line, "'" + all[i].name + "' is declared twice");
            if (known->is_extern) *known = std::move(all[i]);
            all.erase(all.begin() + static_cast<std::ptrdiff_t>(i--));
        }
    }

    // --- declarations ------------------------------------------------------------------------------------------------
    Element element(bool parameter) {
        Element e;
        bool pointer = false;
        while (lex_.peek() == '.') {
            int line = lex_.line();
            std::string_view word = lex_.dot_word();
            Space ignored;
            if (word == "align") {
                uint64_t align = lex_.unsigned_integer("an alignment", kMostAlignment);
                if (!align || (align & (align - 1))) lex_.fail(line, "an alignment that is no power of two");
                if (!pointer) e.align = align;  // otherwise that of what the parameter points to
            } else if (word == "v2" || word == "v4" || word == "v8") {
                e.vector = word[1] - '0';
            } else if (word == "attribute") {
                if (lex_.peek() != '(') lex_.expected("'('");
                lex_.skip_balanced('(', ')');
            } else if (parameter && word == "ptr") {
                pointer = true;
            } else if (pointer && is_space(word, &ignored)) {
            } else if (int bytes = bytes_of(word); bytes >= 0) {
                if (!e.type.name.empty()) lex_.fail(line, "a declaration with two types");
                e.type = {std::string(word), bytes};
            } else {
                lex_.fail(line, "unknown type or attribute ." + std::string(word) + " in a declaration");
            }
        }
        if (e.type.name.empty()) lex_.expected("a type");
        return e;
    }

    // A name with its dimensions and initialiser.
    Variable variable(const Element& e, Space space, bool is_extern) {
        Variable v;
        int line = lex_.line();
        v.name = lex_.name("a variable's name");
        v.space = space;
        v.type = e.type;
        v.vector = e.vector;
        v.align = e.align;
        v.is_extern = is_extern;
        if (space == Space::reg) return v;
        if (!e.type.bytes) lex_.fail(line, "a predicate outside of registers");
        std::vector<uint64_t> dimensions;
        while (lex_.accept('[')) {
            if (dimensions.size() == kMostDimensions) lex_.fail("too many dimensions");
            uint64_t n = 0;
            if (lex_.peek() != ']')
                n = lex_.unsigned_integer("a dimension", kMostBytes);
            else if (!dimensions.empty())
                lex_.fail("only the first dimension may be left out");
            lex_.expect(']');
            dimensions.push_back(n);
        }
        uint64_t item = static_cast<uint64_t>(e.type.bytes * e.vector);  // no overflow: checked before every product
        for (uint64_t n : dimensions) {
            v.count *= n;
            if (n > kMostBytes / item) lex_.fail(line, "'" + v.name + "' is too large");
            if (n) item *= n;
        }
        if (lex_.accept('=')) {
            if (space != Space::global && space != Space::constant)
                lex_.fail(line, "an initialiser outside of .global and .const");
            if (is_extern) lex_.fail(line, "an initialiser of an external variable");
            initializer_.read(lex_, v, std::move(dimensions));
        }
        return v;
    }

    // .reg .b32 %a, %b<3>;  after the state space. `declared` hears of every variable.
    template <class Declared>
    void declaration(Space space, bool is_extern, std::vector<Variable>& list, Declared declared) {
        Element e = element(false);
        do {
            Variable v = variable(e, space, is_extern);
            if (space == Space::reg && lex_.accept('<')) {
                int line = lex_.line();
                uint64_t n = lex_.unsigned_integer("a number of registers", kMostRange);
                lex_.expect('>');
                take_registers(n, line);
                for (uint64_t i = 0; i < n; ++i) {
                    Variable& numbered = list.emplace_back(v);
                    numbered.name += std::to_string(i);
                    declared();
                }
            } else {
                if (space == Space::reg) take_registers(1, lex_.line());
                list.push_back(std::move(v));
                declared();
            }
        } while (lex_.accept(','));
        lex_.expect(';');
    }

    void take_registers(uint64_t n, int line) {
        if (n > registers_left_) lex_.fail(line, "too many registers");
        registers_left_ -= n;
    }

    // --- functions ---------------------------------------------------------------------------------------------------
    std::vector<Variable> parameters() {
        std::vector<Variable> list;
        lex_.expect('(');
        if (lex_.accept(')')) return list;
        do {
            if (lex_.peek() != '.') lex_.expected("a parameter");
            int line = lex_.line();
            std::string_view word = lex_.dot_word();
            if (word != "param" && word != "reg") lex_.fail(line, "a parameter in ." + std::string(word));
            Element e = element(true);
            list.push_back(variable(e, word == "reg" ? Space::reg : Space::param, false));
        } while (lex_.accept(','));
        lex_.expect(')');
        return list;
    }

    void function(bool entry, int line) {
        if (!module_->target) lex_.fail(line, "a function before .target");
        Function f;
        f.entry = entry;
        f.line = static_cast<uint32_t>(line);
        while (lex_.peek() == '.') {  // .func .attribute(...) (...) name
            std::string_view word = lex_.dot_word();
            if (word != "attribute") lex_.fail("unknown directive ." + std::string(word));
            if (lex_.peek() != '(') lex_.expected("'('");
            lex_.skip_balanced('(', ')');
        }
        if (!entry && lex_.peek() == '(') f.results = parameters();
        f.name = lex_.name("a function's name");
        if (lex_.peek() == '(') f.parameters = parameters();
        while (lex_.peek() == '.') performance(f);
        size_t index = enter_function(f, line);
        if (lex_.accept(';')) return;
        if (lex_.peek() != '{') lex_.expected("a body or ';'");
        if (module_->functions[index].defined) lex_.fail(line, "'" + f.name + "' has two bodies");
        f.defined = true;
        body(f);
        module_->functions[index] = std::move(f);
    }

    // The place of a function in the module: its declaration's if there is one.
    size_t enter_function(const Function& f, int line) {
        auto [found, fresh] = symbols_.emplace(f.name, Symbol{true, module_->functions.size()});
        if (!fresh && !found->second.function) lex_.fail(line, "'" + f.name + "' is declared twice");
        if (fresh) module_->functions.push_back(f);
        return found->second.index;
    }

    void performance(Function& f) {
        int line = lex_.line();
        std::string_view word = lex_.dot_word();
        auto number = [&] { return static_cast<uint32_t>(lex_.unsigned_integer("a number", UINT32_MAX)); };
        auto three = [&](uint32_t* out) {
            out[0] = number();
            out[1] = lex_.accept(',') ? number() : 1;
            out[2] = lex_.accept(',') ? number() : 1;
        };
        uint32_t unused[3];
        if (word == "maxntid")
            three(f.max_threads);
        else if (word == "reqntid")
            three(f.required_threads);
        else if (word == "minnctapersm")
            f.min_blocks = number();
        else if (word == "maxnreg")
            f.max_registers = number();
        else if (word == "reqnctapercluster")
            three(unused);
        else if (word == "maxnctapersm" || word == "maxclusterrank" || word == "abi_preserve" || word == "abi_preserve_control")
            number();
        else if (word == "pragma")
            lex_.skip_statement();
        else if (word != "noreturn" && word != "explicitcluster" && word != "blocksareclusters")
            lex_.fail(line, "unknown directive ." + std::string(word) + " of a function");
    }

    void body(Function& f) {
        Scopes scopes;
        locations_.begin();
        int line = lex_.line();
        lex_.expect('{');
        for (;;) {
            char c = lex_.peek();
            if (lex_.at_end()) lex_.fail(line, "the body of '" + f.name + "' does not end");
            if (c == '}') {
                lex_.accept('}');
                if (!scopes.depth()) break;
                scopes.close(f);
            } else if (c == '{') {
                if (scopes.depth() == kMostScopes) lex_.fail("scopes nest too deeply");
                lex_.accept('{');
                scopes.open(f);
            } else if (c == '.') {
                body_directive(f, scopes);
            } else if (c == '@') {
                if (lex_.peek(1) == '@')
                    lex_.skip_line();
                else
                    guarded(f);
            } else if (c == ';') {
                lex_.accept(';');
            } else if (lex_.at_name()) {
                int at = lex_.line();
                std::string_view word = lex_.name("an instruction");
                if (lex_.peek() == ':')
                    label(f, scopes, word, at);
                else
                    instruction(f.code.emplace_back(), word, at);
            } else {
                lex_.expected("an instruction");
            }
        }
        scopes.resolve(f, [&](std::string_view name) { return symbols_.contains(std::string(name)); });
    }

    void body_directive(Function& f, Scopes& scopes) {
        int line = lex_.line();
        std::string_view word = lex_.dot_word();
        if (skipped_anywhere(word)) return;
        bool is_extern = false;
        word = after_linkage(word, &is_extern);
        Space space;
        if (!is_space(word, &space)) lex_.fail(line, "unknown directive ." + std::string(word) + " in a body");
        if (space == Space::reg)
            declaration(space, false, f.registers, [&] { scopes.declared_register(f, line); });
        else
            declaration(space, is_extern, f.variables, [&] { scopes.declared_variable(f, line); });
    }

    void label(Function& f, Scopes& scopes, std::string_view name, int line) {
        lex_.accept(':');
        // A directive that has a name: the only ones, so another '.' begins the next statement.
        if (lex_.at_dot_word("callprototype") || lex_.at_dot_word("calltargets")) return lex_.skip_statement();
        if (!lex_.at_dot_word("branchtargets")) {
            f.labels.push_back({std::string(name), static_cast<uint32_t>(f.code.size())});
            scopes.declared_label(f, line);
            return;
        }
        lex_.dot_word();
        Function::Targets targets{std::string(name), {}};
        do {
            targets.labels.emplace_back(lex_.name("a label"));
        } while (lex_.accept(','));
        lex_.expect(';');
        f.targets.push_back(std::move(targets));
        scopes.declared_targets(f, line);
    }

    // --- statements --------------------------------------------------------------------------------------------------
    void guarded(Function& f) {
        int line = lex_.line();
        Statement& s = f.code.emplace_back();
        lex_.accept('@');
        s.guard_negated = lex_.accept('!');
        s.guard = lex_.name("a predicate");
        instruction(s, lex_.name("an instruction"), line);
    }

    void instruction(Statement& s, std::string_view opcode, int line) {
        s.line = line;
        s.frame = locations_.now();
        s.opcode = opcode;
        s.modifiers.reserve(4);
        while (lex_.peek() == '.') s.modifiers.emplace_back(lex_.dot_word());
        if (lex_.accept(';')) return;
        s.operands.reserve(4);
        do {
            operand(s.operands.emplace_back(), 0);
        } while (lex_.accept(','));
        if (!lex_.accept(';')) lex_.expected("',' or ';' in an instruction '" + s.opcode + "'");
    }

    void operand(Operand& out, int depth) {
        primary(out, depth);
        if (lex_.peek() != '|') return;
        Operand first = std::move(out);
        out = Operand{};
        out.kind = Operand::Kind::pair;
        out.parts.reserve(2);
        out.parts.push_back(std::move(first));
        lex_.accept('|');
        primary(out.parts.emplace_back(), depth);
    }

    void primary(Operand& out, int depth) {
        using Kind = Operand::Kind;
        if (depth > kMostOperands) lex_.fail("operands nest too deeply");
        if (lex_.at_name()) {
            named(out);
        } else if (char c = lex_.peek(); c == '[') {
            address(out);
        } else if (c == '{' || c == '(') {
            out.kind = c == '{' ? Kind::vector : Kind::list;
            char close = c == '{' ? '}' : ')';
            lex_.accept(c);
            if (c == '(' && lex_.accept(close)) return;
            do {
                operand(out.parts.emplace_back(), depth + 1);
            } while (lex_.accept(','));
            lex_.expect(close);
        } else if (c == '!') {
            lex_.accept('!');
            if (!lex_.at_name()) lex_.expected("a predicate");
            named(out);
            if (out.kind != Kind::name) lex_.fail("'!' needs a predicate");
            out.negated = true;
        } else if (c == '-' || c == '+' || lex_.at_number()) {
            Number n = lex_.signed_number();
            out.kind = n.kind;
            out.value = n.bits;
        } else {
            lex_.expected("an operand");
        }
    }

    void named(Operand& out) {
        std::string_view name = lex_.dotted_name();
        if (name == "_") {
            out.kind = Operand::Kind::sink;
        } else if (name == "WARP_SZ") {
            out.kind = Operand::Kind::integer;
            out.value = 32;
        } else {
            out.kind = Operand::Kind::name;
            out.name = name;
            out.value = offsets();
            if (out.value && name[0] == '%') lex_.fail("an offset to register " + out.name + " outside of an address");
        }
    }

    void address(Operand& out) {
        out.kind = Operand::Kind::address;
        lex_.accept('[');
        if (lex_.at_name())
            out.name = lex_.dotted_name();
        else
            out.value = integer();
        out.value += offsets();
        if (!lex_.accept(']')) lex_.expected("']' (a form of address that is not known)");
    }

    uint64_t integer() {
        Number n = lex_.signed_number();
        if (n.kind != Operand::Kind::integer) lex_.fail("an offset that is not an integer");
        return n.bits;
    }

    // What is added to a symbol or an address: "+4", "+-8", "-8".
    uint64_t offsets() {
        uint64_t sum = 0;
        for (;;) {
            if (lex_.accept('+'))
                sum += integer();
            else if (lex_.peek() == '-')
                sum += integer();
            else
                return sum;
        }
    }

    // --- the end of the module ---------------------------------------------------------------------------------------
    // .alias a, b;  a call of a calls b. nvcc writes it for constructors; a itself has no body then.
    void resolve_aliases() {
        if (aliases_.empty()) return;
        for (auto& [name, alias] : aliases_) {
            std::string to = alias.of;
            for (int hops = 0; aliases_.contains(to); ++hops) {
                if (hops == 8) lex_.fail(alias.line, "aliases of aliases without end");
                to = aliases_.at(to).of;
            }
            auto found = symbols_.find(to);
            if (found == symbols_.end() || !found->second.function) lex_.fail(alias.line, "no function '" + to + "'");
            resolved_[name] = to;
        }
        std::erase_if(module_->functions, [&](const Function& f) { return !f.defined && resolved_.contains(f.name); });
        for (const Function& f : module_->functions)
            if (resolved_.contains(f.name)) lex_.fail(aliases_.at(f.name).line, "the alias '" + f.name + "' has a body");
        auto rename_all = [&](std::vector<Variable>& list) {
            for (Variable& v : list)
                for (Variable::Address& a : v.addresses) rename(a.symbol);
        };
        rename_all(module_->variables);
        for (Function& f : module_->functions) {
            rename_all(f.variables);
            for (Statement& s : f.code)
                for (Operand& operand : s.operands)
                    if (operand.kind == Operand::Kind::name) rename(operand.name);
        }
    }

    void rename(std::string& name) const {
        if (auto found = resolved_.find(name); found != resolved_.end()) name = found->second;
    }

    // .file stands after the code.
    void locate() {
        for (Function& f : module_->functions)
            for (Statement& s : f.code) s.where = locations_.resolve(s.frame, module_->files);
    }

    struct Alias {
        std::string of;
        int line;
    };

    Lexer lex_;
    std::unique_ptr<Module> module_ = std::make_unique<Module>();
    std::unordered_map<std::string, Symbol> symbols_;
    std::unordered_map<std::string, Alias> aliases_;
    std::unordered_map<std::string, std::string> resolved_;
    Locations locations_{module_->frames};
    Initializer initializer_;
    uint64_t registers_left_;
};

}  // namespace

std::unique_ptr<Module> parse(std::string_view text) {
    // What a driver is given ends with a null byte.
    while (!text.empty() && text.back() == '\0') text.remove_suffix(1);
    return Parser(text).run();
}

}  // namespace vgpu::ptx
