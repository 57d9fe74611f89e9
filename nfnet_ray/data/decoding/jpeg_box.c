/*
 * The pixels of one box of a JPEG, without making those of the rest.
 *
 * Three quarters of the time that libjpeg-turbo takes for a photograph of ImageNet go into its Huffman codes. Here these are
 * read through larger tables than libjpeg's, only down to the lower edge of the box, and what is beside it is not kept. The
 * coefficients of the blocks under the box are then given to libjpeg-turbo as an image of their own. It makes pixels of them
 * by the code by which it makes those of the whole image, so they are the same to the bit.
 *
 * Only what is common is read here: a baseline JPEG in one scan without restart markers, grey or of three components.
 * All else, and all that looks wrong in any way, is left to the caller, who has libjpeg-turbo decode and judge the whole.
 *
 * Sources: ITU-T T.81, annexes B (markers), C and F.2 (Huffman decoding); libjpeg.txt, jdtrans.c and jdhuff.c of
 * libjpeg-turbo 2.1 (buffered-image mode, jpeg_read_coefficients; what it does where T.81 is silent).
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "this jpeglib.h is not libjpeg-turbo's, and its library may make other pixels"
#endif

enum { DECODED = 0, NOT_HERE = 1 };

/* --- Bits ------------------------------------------------------------------------------------- */

enum {
  BITS_IN_HAND = 56,
  LOOK_BITS = 11, /* of 10, 11 and 12 the fastest on a Zen 5 core */
  LOOKS_IN_HAND = BITS_IN_HAND / LOOK_BITS,
  READ_AHEAD = 8, /* bytes */
  /* More than one MCU can read behind the end: 10 blocks of 64 symbols of at most 31 bits. */
  ZEROS_AFTER_DATA = 4096,
};

/*
 * A position in entropy-coded data whose stuffed zeros (T.81, B.1.1.5) are taken out. bits has the next ones from the highest
 * on; count of them are there, after a refill at least 56. Functions that are not inlined get and give it by value: its
 * address would keep it out of the registers.
 */
struct reader {
  uint64_t bits;
  int count;
  const uint8_t *next;
};

static inline void refill(struct reader *reader) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint64_t word;
  memcpy(&word, reader->next, sizeof word);
  word = __builtin_bswap64(word);
#else
  uint64_t word = 0;
  for (int i = 0; i < 8; i++) word = word << 8 | reader->next[i];
#endif
  reader->bits |= word >> reader->count; /* bits that do not fit come again, at the same place */
  reader->next += (63 - reader->count) >> 3;
  reader->count |= BITS_IN_HAND;
}

static inline unsigned take(struct reader *reader, int count) { /* 1 to 31 bits */
  unsigned value = (unsigned)(reader->bits >> (64 - count));
  reader->bits <<= count;
  reader->count -= count;
  return value;
}

/* Copies the data up to the next marker. Gives the marker's second byte, or 0 where there is none. */
static int unstuff(const uint8_t *source, const uint8_t *end, uint8_t *data, size_t *bytes) {
  uint8_t *to = data;
  int marker = 0;
  while (source < end) {
    const uint8_t *found = memchr(source, 0xFF, (size_t)(end - source));
    size_t length = (size_t)((found ? found : end) - source);
    memcpy(to, source, length);
    to += length;
    if (!found) break;
    source = found + 1;
    while (source < end && *source == 0xFF) source++; /* fill bytes */
    if (source == end) break;
    marker = *source++;
    if (marker) break;
    *to++ = 0xFF;
  }
  *bytes = (size_t)(to - data);
  return marker;
}

/* --- Huffman tables --------------------------------------------------------------------------- */

enum {
  LONGEST_CODE = 16,       /* bits, T.81 C.1 */
  END_OF_BLOCK_STEP = 128, /* leads further than any run from within a block, */
  WRONG_STEP = 64,         /* and this to between the block's end and there */
};

/*
 * What the next LOOK_BITS bits begin with: one symbol and its value, or two. A step leads from the coefficient before to the
 * one that has the value. Where there is no second symbol, the second step is 0 and the second value the first once more.
 * Where not even the first has its value in these bits, bits is 0, first_bits are those of its code and first_value is the
 * symbol; for a longer code first_bits is 0 too.
 */
struct look {
  uint8_t bits, first_bits, first_step, second_step;
  int16_t first_value, second_value;
};

struct table {
  struct look look[1 << LOOK_BITS];
  int32_t last_code[LONGEST_CODE + 1];  /* of each length, -1 for none */
  int32_t first_place[LONGEST_CODE + 1]; /* among the symbols, less its code */
  uint8_t symbols[256];
  uint8_t counts[LONGEST_CODE + 1]; /* of codes of each length */
  int is_defined, is_ready;
};

static inline int extended(unsigned bits, int size) { /* T.81, figure F.12 */
  return (int)bits - (bits < 1u << (size - 1) ? (1 << size) - 1 : 0);
}

static int step_of(int symbol) {
  int run = symbol >> 4, size = symbol & 15;
  return size || run == 15 ? run + 1 : END_OF_BLOCK_STEP; /* libjpeg ends the block at every other symbol without size */
}

/* Makes the look-up of a table (T.81, C.2), once. Whether it is one. */
static int make_ready(struct table *table, int is_dc) {
  enum { LOOKS = 1 << LOOK_BITS };
  if (!table->is_defined) return 0;
  if (table->is_ready) return 1;
  struct look single[LOOKS];
  memset(single, 0, sizeof single);
  int code = 0, place = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->first_place[length] = place - code;
    for (int left = table->counts[length]; left > 0; left--, code++, place++) {
      if (code >= 1 << length) return 0;
      int symbol = table->symbols[place], size = symbol & 15;
      if (is_dc && symbol > 15) return 0;
      if (length > LOOK_BITS) continue;
      int free_bits = LOOK_BITS - length;
      struct look *look = single + (code << free_bits);
      for (int suffix = 0; suffix < 1 << free_bits; suffix++, look++) {
        look->first_step = (uint8_t)(is_dc ? 1 : step_of(symbol));
        if (size > free_bits) {
          look->first_bits = (uint8_t)length;
          look->first_value = (int16_t)symbol;
        } else {
          look->first_bits = look->bits = (uint8_t)(length + size);
          look->first_value = (int16_t)(size ? extended((unsigned)suffix >> (free_bits - size), size) : 0);
        }
      }
    }
    table->last_code[length] = table->counts[length] ? code - 1 : -1;
  }
  for (int bits = 0; bits < LOOKS; bits++) {
    struct look *look = &table->look[bits];
    *look = single[bits];
    look->second_value = look->first_value;
    if (is_dc || !look->bits || look->first_step == END_OF_BLOCK_STEP) continue;
    const struct look *second = &single[bits << look->bits & (LOOKS - 1)];
    if (!second->bits || look->bits + second->bits > LOOK_BITS) continue;
    look->bits = (uint8_t)(look->bits + second->bits);
    look->second_step = second->first_step;
    look->second_value = second->first_value;
  }
  table->is_ready = 1;
  return 1;
}

struct found {
  struct reader reader;
  int step, value;
};

/* A symbol and its value where the look-up has not both. Refills the reader. */
static struct found search(const struct table *table, struct reader reader, struct look look) {
  struct found found = {reader, WRONG_STEP, 0};
  int symbol = look.first_value;
  refill(&reader);
  if (look.first_bits) {
    take(&reader, look.first_bits);
  } else {
    int length = LOOK_BITS + 1;
    while (length <= LONGEST_CODE && (int32_t)(reader.bits >> (64 - length)) > table->last_code[length]) length++;
    if (length > LONGEST_CODE) return found;
    symbol = table->symbols[table->first_place[length] + (int32_t)take(&reader, length)];
  }
  int size = symbol & 15;
  if (size) found.value = extended(take(&reader, size), size);
  refill(&reader);
  found.reader = reader;
  found.step = step_of(symbol);
  return found;
}

static inline int decode_dc(const struct table *table, struct reader *reader, int *difference) {
  refill(reader);
  struct look look = table->look[reader->bits >> (64 - LOOK_BITS)];
  if (look.bits) {
    take(reader, look.bits);
    *difference = look.first_value;
    return 1;
  }
  struct found found = search(table, *reader, look);
  *reader = found.reader;
  *difference = found.value;
  return found.step != WRONG_STEP;
}

/* Where the coefficients stand in a block, in the order in which they come (T.81, figure A.6). */
static const uint8_t NATURAL_ORDER[DCTSIZE2] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/*
 * The coefficients of one block after its first, into the block, which is 0 there, or nowhere if it is NULL. Whether they are
 * in order: else there is a code that the table does not have, or a run that leaves the block.
 */
static inline int decode_ac(const struct table *table, struct reader *reader, JCOEF *block) {
  int place = 1; /* of the next coefficient */
  for (;;) {
    refill(reader);
    for (int i = 0; i < LOOKS_IN_HAND; i++) {
      struct look look = table->look[reader->bits >> (64 - LOOK_BITS)];
      if (!look.bits) {
        struct found found = search(table, *reader, look);
        *reader = found.reader;
        place += found.step;
        if (place > DCTSIZE2) return place > END_OF_BLOCK_STEP;
        if (block) block[NATURAL_ORDER[place - 1]] = (JCOEF)found.value;
        if (place == DCTSIZE2) return 1;
        continue;
      }
      int first = place + look.first_step;
      place = first + look.second_step;
      if (place < DCTSIZE2) {
        if (block) { /* after a run of 16 the value is 0, and there is one already */
          block[NATURAL_ORDER[first - 1]] = look.first_value;
          block[NATURAL_ORDER[place - 1]] = look.second_value;
        }
        reader->bits <<= look.bits;
        reader->count -= look.bits;
        continue;
      }
      if (first >= DCTSIZE2) { /* the second symbol belongs to the next block */
        take(reader, look.first_bits);
        if (block && first == DCTSIZE2) block[NATURAL_ORDER[DCTSIZE2 - 1]] = look.first_value;
        return first == DCTSIZE2 || first > END_OF_BLOCK_STEP;
      }
      take(reader, look.bits);
      if (block) block[NATURAL_ORDER[first - 1]] = look.first_value;
      if (block && place == DCTSIZE2) block[NATURAL_ORDER[DCTSIZE2 - 1]] = look.second_value;
      return place == DCTSIZE2 || place > END_OF_BLOCK_STEP;
    }
  }
}

/* --- The header ------------------------------------------------------------------------------- */

enum {
  MOST_COMPONENTS = 3,
  MOST_BLOCKS_IN_MCU = 10,  /* T.81, B.2.3 */
  LONGEST_HEADER = 1 << 14, /* bytes; 700 are usual */
};

struct component {
  int id, horizontal, vertical; /* sampling factors */
  int dc, ac;                   /* numbers of tables */
};

struct header {
  int height, width, components;
  struct component component[MOST_COMPONENTS];
  int mcu_height, mcu_width; /* pixels */
  int mcu_rows, mcu_columns;
  struct table tables[2][4]; /* DC, AC */
  size_t scan;               /* offset of the entropy-coded data */
  uint8_t kept[LONGEST_HEADER + 2]; /* what bears on the pixels, up to there */
  size_t kept_bytes, size_offset;   /* and where in it the height stands */
};

static int read_huffman_tables(struct header *header, const uint8_t *at, size_t length) { /* T.81, B.2.4.2 */
  while (length > 0) {
    if (length < 17 || at[0] >> 4 > 1 || (at[0] & 15) > 3) return 0;
    struct table *table = &header->tables[at[0] >> 4][at[0] & 15];
    size_t symbols = 0;
    for (int bits = 1; bits <= LONGEST_CODE; bits++) symbols += table->counts[bits] = at[bits];
    if (symbols > 256 || length < 17 + symbols) return 0;
    memset(table->symbols, 0, sizeof table->symbols);
    memcpy(table->symbols, at + 17, symbols);
    table->is_defined = 1;
    at += 17 + symbols;
    length -= 17 + symbols;
  }
  return 1;
}

static int read_frame(struct header *header, const uint8_t *at, size_t length) { /* T.81, B.2.2 */
  if (length < 6 || header->components || at[0] != 8) return 0;
  header->height = at[1] << 8 | at[2];
  header->width = at[3] << 8 | at[4];
  int count = at[5], blocks = 0, widest = 0, highest = 0;
  if ((count != 1 && count != MOST_COMPONENTS) || length != 6 + 3 * (size_t)count) return 0;
  if (!header->height || header->height > JPEG_MAX_DIMENSION) return 0;
  if (!header->width || header->width > JPEG_MAX_DIMENSION) return 0;
  for (int i = 0; i < count; i++) {
    struct component *component = &header->component[i];
    component->id = at[6 + 3 * i];
    component->horizontal = at[7 + 3 * i] >> 4;
    component->vertical = at[7 + 3 * i] & 15;
    for (int other = 0; other < i; other++) {
      if (header->component[other].id == component->id) return 0;
    }
    if (component->horizontal < 1 || component->horizontal > MAX_SAMP_FACTOR) return 0;
    if (component->vertical < 1 || component->vertical > MAX_SAMP_FACTOR) return 0;
    if (component->horizontal > widest) widest = component->horizontal;
    if (component->vertical > highest) highest = component->vertical;
    blocks += component->horizontal * component->vertical;
  }
  header->components = count;
  header->mcu_height = highest * DCTSIZE;
  header->mcu_width = widest * DCTSIZE;
  header->mcu_rows = (header->height + header->mcu_height - 1) / header->mcu_height;
  header->mcu_columns = (header->width + header->mcu_width - 1) / header->mcu_width;
  return count == 1 ? blocks == 1 : blocks <= MOST_BLOCKS_IN_MCU;
}

static int read_scan(struct header *header, const uint8_t *at, size_t length) { /* T.81, B.2.3 */
  int count = header->components;
  if (!count || length != 4 + 2 * (size_t)count || at[0] != count) return 0;
  for (int i = 0; i < count; i++) {
    struct component *component = &header->component[i];
    component->dc = at[2 + 2 * i] >> 4;
    component->ac = at[2 + 2 * i] & 15;
    if (at[1 + 2 * i] != component->id || component->dc > 3 || component->ac > 3) return 0;
    if (!make_ready(&header->tables[0][component->dc], 1)) return 0;
    if (!make_ready(&header->tables[1][component->ac], 0)) return 0;
  }
  const uint8_t *spectrum = at + 1 + 2 * count;
  return spectrum[0] == 0 && spectrum[1] == DCTSIZE2 - 1 && spectrum[2] == 0;
}

/* Reads up to the first scan. Whether this is a JPEG that is decoded here. */
static int read_header(struct header *header, const uint8_t *source, size_t size) {
  enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, SOS = 0xDA, DQT = 0xDB, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };
  header->components = 0;
  for (int i = 0; i < 8; i++) header->tables[i / 4][i % 4].is_defined = header->tables[i / 4][i % 4].is_ready = 0;
  if (size < 2 || source[0] != 0xFF || source[1] != 0xD8) return 0;
  memcpy(header->kept, source, 2);
  header->kept_bytes = 2;
  for (size_t position = 2; position + 4 <= size;) {
    const uint8_t *segment = source + position;
    int marker = segment[1], is_good = 1;
    if (segment[0] != 0xFF) return 0;
    if (marker == 0xFF) { /* a fill byte */
      position++;
      continue;
    }
    size_t length = 2 + ((size_t)segment[2] << 8 | segment[3]);
    if (length < 4 || length > size - position) return 0;
    if (marker == SOF0 || marker == SOF1) {
      header->size_offset = header->kept_bytes + 5;
      is_good = read_frame(header, segment + 4, length - 4);
    } else if (marker == DHT) {
      is_good = read_huffman_tables(header, segment + 4, length - 4);
    } else if (marker == SOS) {
      is_good = read_scan(header, segment + 4, length - 4);
    } else if (marker != DQT && marker != COM && (marker < JPEG_APP0 || marker > APP15)) {
      return 0; /* another kind of frame, restart markers, arithmetic coding */
    }
    if (!is_good) return 0;
    if (marker <= JPEG_APP0 || marker == APP14) { /* of these segments JFIF's and Adobe's decide on the colours */
      if (length > LONGEST_HEADER - header->kept_bytes) return 0;
      memcpy(header->kept + header->kept_bytes, segment, length);
      header->kept_bytes += length;
    }
    position += length;
    if (marker == SOS) {
      header->scan = position;
      return 1;
    }
  }
  return 0;
}

/* --- The box ---------------------------------------------------------------------------------- */

/* Coefficients are kept in memory, 2 bytes each; what is larger libjpeg decodes row by row. */
enum { MOST_PIXELS = 1 << 26 };

struct region { /* of MCUs, up to ends that are not in it, */
  int top, bottom, left, right;
  int first_row, first_column, height, width; /* and in pixels */
};

static int smaller(int one, int other) { return one < other ? one : other; }

/*
 * The MCUs under a box and under one more pixel on each side, since chroma is interpolated between neighbours. libjpeg does
 * not interpolate in images of less than 5 columns (jdsample.c), so it must not see so few of a wider one.
 */
static struct region region_of(const struct header *header, int top, int left, int height, int width) {
  struct region region;
  region.top = top > 0 ? (top - 1) / header->mcu_height : 0;
  region.bottom = smaller((top + height) / header->mcu_height + 1, header->mcu_rows);
  region.left = left > 0 ? (left - 1) / header->mcu_width : 0;
  region.right = smaller((left + width) / header->mcu_width + 1, header->mcu_columns);
  if (region.left > 0 && region.right - region.left == 1) region.left--;
  region.first_row = region.top * header->mcu_height;
  region.first_column = region.left * header->mcu_width;
  region.height = smaller(region.bottom * header->mcu_height, header->height) - region.first_row;
  region.width = smaller(region.right * header->mcu_width, header->width) - region.first_column;
  return region;
}

struct trap {
  struct jpeg_error_mgr manager;
  jmp_buf back;
  int ignores_warnings;
};

static void leave(j_common_ptr jpeg) { longjmp(((struct trap *)jpeg->err)->back, 1); }

static void leave_on_warning(j_common_ptr jpeg, int level) {
  if (level < 0 && !((struct trap *)jpeg->err)->ignores_warnings) leave(jpeg);
}

/* Has libjpeg make room for the coefficients of an image of the region's size, by giving it one without data. */
static jvirt_barray_ptr *make_room(struct header *header, const struct region *region, j_decompress_ptr jpeg) {
  struct trap *trap = (struct trap *)jpeg->err;
  uint8_t *size = header->kept + header->size_offset, *end = header->kept + header->kept_bytes;
  size[0] = (uint8_t)(region->height >> 8), size[1] = (uint8_t)region->height;
  size[2] = (uint8_t)(region->width >> 8), size[3] = (uint8_t)region->width;
  end[0] = 0xFF, end[1] = JPEG_EOI;
  jpeg_mem_src(jpeg, header->kept, header->kept_bytes + 2);
  jpeg_read_header(jpeg, TRUE);
  jpeg->out_color_space = JCS_RGB;
  jpeg->dct_method = JDCT_IFAST; /* what libffcv asks for */
  jpeg->buffered_image = TRUE;
  jpeg_start_decompress(jpeg);
  jvirt_barray_ptr *arrays = jpeg_read_coefficients(jpeg);
  trap->ignores_warnings = 1;
  for (int code = JPEG_SUSPENDED; code != JPEG_REACHED_EOI;) {
    code = jpeg_consume_input(jpeg);
    if (code == JPEG_SUSPENDED) leave((j_common_ptr)jpeg);
  }
  trap->ignores_warnings = 0;
  return arrays;
}

/*
 * Reads all MCUs down to the region's end from data, and keeps the coefficients of those in it. Gives the place behind the
 * last byte that was needed, or NULL where something is wrong, such as that it lies behind the end.
 */
static const uint8_t *read_coefficients(const struct header *header, const struct region *region, const uint8_t *data,
                                        const uint8_t *end, j_decompress_ptr jpeg, jvirt_barray_ptr *arrays) {
  struct reader reader = {0, 0, data};
  int last_dc[MOST_COMPONENTS] = {0};
  for (int row = 0; row < region->bottom; row++) {
    JBLOCKARRAY blocks[MOST_COMPONENTS] = {0};
    for (int i = 0; row >= region->top && i < header->components; i++) {
      JDIMENSION vertical = (JDIMENSION)header->component[i].vertical;
      blocks[i] = jpeg->mem->access_virt_barray((j_common_ptr)jpeg, arrays[i],
                                                (JDIMENSION)(row - region->top) * vertical, vertical, TRUE);
    }
    for (int column = 0; column < header->mcu_columns; column++) {
      int is_kept = row >= region->top && column >= region->left && column < region->right;
      for (int i = 0; i < header->components; i++) {
        const struct component *component = &header->component[i];
        const struct table *dc = &header->tables[0][component->dc], *ac = &header->tables[1][component->ac];
        for (int y = 0; y < component->vertical; y++) {
          for (int x = 0; x < component->horizontal; x++) {
            int difference;
            if (!decode_dc(dc, &reader, &difference)) return NULL;
            last_dc[i] += difference;
            if (last_dc[i] != (JCOEF)last_dc[i]) return NULL;
            if (is_kept) {
              JCOEF *block = blocks[i][y][(column - region->left) * component->horizontal + x];
              memset(block, 0, sizeof(JBLOCK));
              block[0] = (JCOEF)last_dc[i];
              if (!decode_ac(ac, &reader, block)) return NULL;
            } else if (!decode_ac(ac, &reader, NULL)) {
              return NULL;
            }
          }
        }
      }
      if (reader.next > end + READ_AHEAD) return NULL;
    }
  }
  const uint8_t *read = reader.next - reader.count / 8; /* the rest of a byte that was begun is padding */
  return read <= end ? read : NULL;
}

/*
 * Decodes the box (top, left, height, width), in pixels, of a JPEG into box: height x width x 3 bytes, RGB.
 *
 * full_height and full_width are what the caller takes the JPEG's size for; the box is not empty and lies in it. Gives DECODED,
 * or NOT_HERE where the JPEG is of another size or kind, or anything is wrong with it; what is in box is then undefined, and
 * libjpeg-turbo has to be asked for the whole, which says what is wrong. Many threads may call it at once. The number in its
 * name is that of this description: a library that was built for another one has no such function.
 */
int nfnet_ray_jpeg_box_1(const uint8_t *source, size_t size, int full_height, int full_width, int top, int left,
                         int height, int width, uint8_t *box) {
  struct header header;
  if (!read_header(&header, source, size)) return NOT_HERE;
  if (header.height != full_height || header.width != full_width) return NOT_HERE;
  struct region region = region_of(&header, top, left, height, width);
  if ((int64_t)region.height * region.width > MOST_PIXELS) return NOT_HERE;

  struct jpeg_decompress_struct jpeg;
  struct trap trap;
  jpeg.err = jpeg_std_error(&trap.manager);
  trap.manager.error_exit = leave;
  trap.manager.emit_message = leave_on_warning;
  trap.ignores_warnings = 0;
  jpeg.mem = NULL; /* for destroying what was never created */
  if (setjmp(trap.back)) {
    jpeg_destroy_decompress(&jpeg);
    return NOT_HERE;
  }
  jpeg_create_decompress(&jpeg);
  jvirt_barray_ptr *arrays = make_room(&header, &region, &jpeg);

  uint8_t *data = jpeg.mem->alloc_large((j_common_ptr)&jpeg, JPOOL_IMAGE, size - header.scan + ZEROS_AFTER_DATA);
  size_t bytes;
  int marker = unstuff(source + header.scan, source + size, data, &bytes);
  memset(data + bytes, 0, ZEROS_AFTER_DATA);
  const uint8_t *read = read_coefficients(&header, &region, data, data + bytes, &jpeg, arrays);
  /* Bytes that no MCU needs are damage, but only after the last one is it known that none does. */
  int is_complete = region.bottom == header.mcu_rows;
  if (!read || marker != JPEG_EOI || (is_complete && read != data + bytes)) leave((j_common_ptr)&jpeg);

  jpeg_start_output(&jpeg, jpeg.input_scan_number);
  JSAMPARRAY line = jpeg.mem->alloc_sarray((j_common_ptr)&jpeg, JPOOL_IMAGE, (JDIMENSION)region.width * 3, 1);
  for (int row = region.first_row; row < top + height; row++) {
    jpeg_read_scanlines(&jpeg, line, 1);
    if (row < top) continue;
    const JSAMPLE *pixels = line[0] + (size_t)(left - region.first_column) * 3;
    memcpy(box + (size_t)(row - top) * (size_t)width * 3, pixels, (size_t)width * 3);
  }
  jpeg_destroy_decompress(&jpeg);
  return DECODED;
}
