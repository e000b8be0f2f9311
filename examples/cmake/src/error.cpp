#include "reckon/error.hpp"

namespace reckon {

Error::Error(std::size_t column, const std::string& what) : std::runtime_error(what), column_(column) {}

std::string point_at(const std::string& text, const Error& error) {
  return text + "\n" + std::string(error.column(), ' ') + "^ " + error.what();
}

}  // namespace reckon
