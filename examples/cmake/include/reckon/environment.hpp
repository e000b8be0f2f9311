// Names and what they stand for.
#pragma once
#include <map>
#include <string>

#include "reckon/ast.hpp"

namespace reckon {

class Environment {
 public:
  Environment();
  void set(const std::string& name, Expression value);
  // nullptr when the name stands for nothing.
  Expression get(const std::string& name) const;

 private:
  std::map<std::string, Expression> values_;
};

}  // namespace reckon
