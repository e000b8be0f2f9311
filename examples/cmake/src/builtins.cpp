#include "reckon/builtins.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace reckon {
namespace {

using Values = std::vector<double>;

Builtin of_one(double (*f)(double)) {
  return {1, [f](const Values& v) { return f(v[0]); }};
}

const std::unordered_map<std::string, Builtin> builtins = {
    {"sin", of_one(std::sin)},
    {"cos", of_one(std::cos)},
    {"exp", of_one(std::exp)},
    {"ln", of_one(std::log)},
    {"sqrt", of_one(std::sqrt)},
    {"abs", of_one(std::fabs)},
    {"min", {2, [](const Values& v) { return std::min(v[0], v[1]); }}},
    {"max", {2, [](const Values& v) { return std::max(v[0], v[1]); }}},
};

}  // namespace

const Builtin* builtin(const std::string& name) {
  const auto found = builtins.find(name);
  return found == builtins.end() ? nullptr : &found->second;
}

}  // namespace reckon
