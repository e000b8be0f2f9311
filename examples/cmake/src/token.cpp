#include "reckon/token.hpp"

namespace reckon {

const char* describe(Kind kind) {
  switch (kind) {
    case Kind::number: return "a number";
    case Kind::name: return "a name";
    case Kind::plus: return "'+'";
    case Kind::minus: return "'-'";
    case Kind::star: return "'*'";
    case Kind::slash: return "'/'";
    case Kind::caret: return "'^'";
    case Kind::open: return "'('";
    case Kind::close: return "')'";
    case Kind::comma: return "','";
    case Kind::equals: return "'='";
    case Kind::end: return "the end";
  }
  return "nothing";
}

}  // namespace reckon
