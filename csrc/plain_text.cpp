// Lines of tab-separated ASCII in one pass: whole numbers as float64, words as the numbers that a
// table gives them. Whatever is less plain is left to a reader that knows more. Plain C outside.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the lowest byte of eight must be the first"
#endif

namespace {

constexpr uint64_t kOnes = 0x0101010101010101;

uint64_t eight(const char* text) {
  uint64_t bytes;
  std::memcpy(&bytes, text, 8);
  return bytes;
}

// How many of eight bytes come before the first that ends a field, or is not printable ASCII; the
// first byte is the lowest. The subtraction may mark wrong bytes behind the first, not before it.
int before_end(uint64_t bytes) {
  const uint64_t marks = ((bytes - 0x20 * kOnes) | bytes) & 0x80 * kOnes;
  return marks ? __builtin_ctzll(marks) / 8 : 8;
}

// Different words in the order in which they came. No word has a zero in it, so that eight bytes,
// filled up with zeros, are a short word.
class Table {
 public:
  Table() : slots_(1 << 8) {}

  int32_t number(const char* text, uint64_t length, uint64_t first) {
    uint64_t hash = first * 0x9E3779B97F4A7C15;
    for (uint64_t at = 8; at < length; at += 8) {
      uint64_t rest = 0;
      std::memcpy(&rest, text + at, length - at < 8 ? length - at : 8);
      hash = (hash ^ (hash >> 29) ^ rest) * 0x9E3779B97F4A7C15;
    }
    hash >>= 33;
    uint64_t at = hash & (slots_.size() - 1);
    for (; slots_[at].number; at = (at + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[at];
      if (slot.first == first && (length <= 8 ? !slot.is_long : is(slot, text, length))) {
        return static_cast<int32_t>(slot.number - 1);
      }
    }
    ends_.push_back(text_.size() + length);
    text_.append(text, length).push_back('\n');
    slots_[at] = {first, static_cast<uint32_t>(ends_.size()), length > 8, static_cast<uint32_t>(hash)};
    if (2 * ends_.size() > slots_.size()) grow();
    return static_cast<int32_t>(ends_.size() - 1);
  }

  const std::string& text() const { return text_; }

 private:
  struct Slot {
    uint64_t first;
    uint32_t number;  // and one more; 0 is a free slot
    uint32_t is_long : 1;
    uint32_t hash : 31;
  };

  bool is(const Slot& slot, const char* text, uint64_t length) const {
    const uint64_t begin = slot.number > 1 ? ends_[slot.number - 2] + 1 : 0;
    return slot.is_long && ends_[slot.number - 1] - begin == length &&
           !std::memcmp(text_.data() + begin, text, length);
  }

  void grow() {
    std::vector<Slot> old(4 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (!slot.number) continue;
      uint64_t at = slot.hash & (slots_.size() - 1);
      while (slots_[at].number) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }

  std::vector<Slot> slots_;
  std::vector<uint64_t> ends_;
  std::string text_;  // each word with a line feed behind it
};

// A whole number of at most 15 digits, which float64 holds exactly. Returns where it ends, or null.
const char* whole(const char* text, double& value) {
  const bool minus = *text == '-';
  const char* const begin = text += minus;
  int64_t digits = 0;
  while (*text >= '0' && *text <= '9' && text - begin < 16) digits = 10 * digits + (*text++ - '0');
  if (text == begin || text - begin > 15) return nullptr;
  value = minus ? -static_cast<double>(digits) : static_cast<double>(digits);
  return text;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void* lpfs_table() { return new Table; }

__attribute__((visibility("default"))) void lpfs_free(void* table) {
  delete static_cast<Table*>(table);
}

__attribute__((visibility("default"))) const char* lpfs_words(void* table, uint64_t* size) {
  const std::string& text = static_cast<Table*>(table)->text();
  *size = text.size();
  return text.data();
}

// Columns with a table are words, those with a place for numbers numbers, the others are passed
// over. The text ends with a line feed and has eight bytes more that may be read. Returns the
// number of lines, or -1 if not all are plain, which leaves only some words in the tables.
__attribute__((visibility("default"))) int64_t lpfs_plain(
    const char* text, uint64_t size, int32_t columns, void** tables, int32_t** codes,
    double** numbers) {
  const char* const end = text + size;
  int64_t row = 0;
  for (; text < end; ++row) {
    for (int32_t column = 0; column < columns; ++column) {
      const char stop = column + 1 < columns ? '\t' : '\n';
      if (numbers[column]) {
        double& value = numbers[column][row];
        if (*text == stop) {
          value = __builtin_nan("");
        } else {
          text = whole(text, value);
          if (!text || *text != stop) return -1;
        }
      } else {
        const char* const begin = text;
        const uint64_t bytes = eight(text);
        int length = before_end(bytes);
        const uint64_t first = length < 8 ? bytes & ((uint64_t{1} << 8 * length) - 1) : bytes;
        text += length;
        while (length == 8) text += length = before_end(eight(text));
        if (*text != stop) return -1;
        if (codes[column]) {
          codes[column][row] = static_cast<Table*>(tables[column])
                                   ->number(begin, static_cast<uint64_t>(text - begin), first);
        }
      }
      ++text;
    }
  }
  return row;
}
}
