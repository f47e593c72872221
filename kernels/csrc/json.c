#include "json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 16 };

typedef struct reader {
    const char *content;
    size_t size;
    size_t at;
    json_document *document;
    size_t written; /* bytes of document->text; unescaping never makes text longer */
    const char *problem;
} reader;

static int fail(reader *r, const char *problem) {
    if (r->problem == NULL) {
        r->problem = problem;
    }
    return 0;
}

static void skip_space(reader *r) {
    while (r->at < r->size && strchr(" \t\r\n", r->content[r->at]) != NULL && r->content[r->at] != '\0') {
        r->at++;
    }
}

static int next_is(reader *r, char wanted) {
    skip_space(r);
    if (r->at < r->size && r->content[r->at] == wanted) {
        r->at++;
        return 1;
    }
    return 0;
}

/* The index of a new value, or 0 without memory; the root is made by json_read, so 0 is never a child. */
static size_t add_value(json_document *document) {
    if (document->count == document->capacity) {
        size_t capacity = document->capacity * 2;
        json_value *values = realloc(document->values, capacity * sizeof *values);
        if (values == NULL) {
            return 0;
        }
        document->values = values;
        document->capacity = capacity;
    }
    memset(&document->values[document->count], 0, sizeof(json_value));
    return document->count++;
}

static int read_hex(reader *r, unsigned *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        if (r->at >= r->size) {
            return fail(r, "a string doesn't end");
        }
        char c = r->content[r->at];
        unsigned digit;
        if (c >= '0' && c <= '9') {
            digit = (unsigned)(c - '0');
        } else if (c >= 'a' && c <= 'f') {
            digit = (unsigned)(c - 'a' + 10);
        } else if (c >= 'A' && c <= 'F') {
            digit = (unsigned)(c - 'A' + 10);
        } else {
            return fail(r, "\\u wants four hexadecimal digits");
        }
        *code = *code * 16 + digit;
    }
    return 1;
}

static int read_escape(reader *r) {
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    char *text = r->document->text;
    if (r->at >= r->size) {
        return fail(r, "a string doesn't end");
    }
    char c = r->content[r->at++];
    const char *found = c == '\0' ? NULL : strchr(from, c);
    if (found != NULL) {
        text[r->written++] = to[found - from];
        return 1;
    }
    unsigned code;
    if (c != 'u') {
        return fail(r, "an escape isn't known");
    }
    if (!read_hex(r, &code)) {
        return 0;
    }
    if (code == 0 || (code >= 0xD800 && code <= 0xDFFF)) {
        return fail(r, "a null or a surrogate in a string");
    }
    if (code < 0x80) {
        text[r->written++] = (char)code;
    } else if (code < 0x800) {
        text[r->written++] = (char)(0xC0 | (code >> 6));
        text[r->written++] = (char)(0x80 | (code & 0x3F));
    } else {
        text[r->written++] = (char)(0xE0 | (code >> 12));
        text[r->written++] = (char)(0x80 | ((code >> 6) & 0x3F));
        text[r->written++] = (char)(0x80 | (code & 0x3F));
    }
    return 1;
}

static int read_string(reader *r, const char **text) {
    if (!next_is(r, '"')) {
        return fail(r, "expected a string");
    }
    *text = r->document->text + r->written;
    while (r->at < r->size) {
        char c = r->content[r->at++];
        if (c == '"') {
            r->document->text[r->written++] = '\0';
            return 1;
        }
        if ((unsigned char)c < 0x20) {
            return fail(r, "a control character in a string");
        }
        if (c != '\\') {
            r->document->text[r->written++] = c;
        } else if (!read_escape(r)) {
            return 0;
        }
    }
    return fail(r, "a string doesn't end");
}

static int read_integer(reader *r, int64_t *integer) {
    int negative = r->content[r->at] == '-';
    size_t at = r->at + (size_t)negative;
    size_t first = at;
    int64_t value = 0;
    for (; at < r->size && r->content[at] >= '0' && r->content[at] <= '9'; at++) {
        if (at - first >= 18) {
            return fail(r, "a number has more than 18 digits");
        }
        value = value * 10 + (r->content[at] - '0');
    }
    if (at == first || (at - first > 1 && r->content[first] == '0')) {
        return fail(r, "expected a value");
    }
    if (at < r->size && (r->content[at] == '.' || r->content[at] == 'e' || r->content[at] == 'E')) {
        return fail(r, "a number isn't whole");
    }
    *integer = negative ? -value : value;
    r->at = at;
    return 1;
}

static int read_word(reader *r, const char *word) {
    size_t length = strlen(word);
    if (r->size - r->at < length || memcmp(r->content + r->at, word, length) != 0) {
        return fail(r, "expected a value");
    }
    r->at += length;
    return 1;
}

static int read_value(reader *r, size_t index, int depth);

static int read_container(reader *r, size_t index, int depth) {
    int object = r->content[r->at++] == '{';
    char end = object ? '}' : ']';
    r->document->values[index].kind = object ? JSON_OBJECT : JSON_ARRAY;
    if (depth == MAX_DEPTH) {
        return fail(r, "too many levels");
    }
    size_t last = 0;
    if (next_is(r, end)) {
        return 1;
    }
    do {
        const char *key = NULL;
        if (object) {
            if (!read_string(r, &key)) {
                return 0;
            }
            if (json_member(r->document, &r->document->values[index], key) != NULL) {
                return fail(r, "a key stands twice in an object");
            }
            if (!next_is(r, ':')) {
                return fail(r, "expected a colon");
            }
        }
        size_t child = add_value(r->document);
        if (child == 0) {
            return fail(r, "out of memory");
        }
        if (!read_value(r, child, depth + 1)) {
            return 0;
        }
        /* Linked only now: while it is read, a child isn't yet a member. */
        r->document->values[child].key = key;
        if (last == 0) {
            r->document->values[index].first = child;
        } else {
            r->document->values[last].next = child;
        }
        last = child;
    } while (next_is(r, ','));
    return next_is(r, end) ? 1 : fail(r, object ? "an object doesn't end" : "an array doesn't end");
}

static int read_value(reader *r, size_t index, int depth) {
    skip_space(r);
    if (r->at >= r->size) {
        return fail(r, "the text ends too early");
    }
    json_value *value = &r->document->values[index];
    switch (r->content[r->at]) {
    case '{':
    case '[':
        return read_container(r, index, depth);
    case '"': {
        const char *text;
        value->kind = JSON_STRING;
        if (!read_string(r, &text)) {
            return 0;
        }
        value->text = text;
        return 1;
    }
    case 't':
        value->kind = JSON_BOOL;
        value->integer = 1;
        return read_word(r, "true");
    case 'f':
        value->kind = JSON_BOOL;
        return read_word(r, "false");
    case 'n':
        value->kind = JSON_NULL;
        return read_word(r, "null");
    default:
        value->kind = JSON_INTEGER;
        return read_integer(r, &value->integer);
    }
}

const char *json_read(const char *content, size_t size, json_document *document, size_t *offset) {
    reader r = {content, size, 0, document, 0, NULL};
    memset(document, 0, sizeof *document);
    document->capacity = 64;
    document->values = calloc(document->capacity, sizeof *document->values);
    document->text = malloc(size + 1);
    *offset = 0;
    if (document->values == NULL || document->text == NULL) {
        return "out of memory";
    }
    document->count = 1;
    if (read_value(&r, 0, 0)) {
        skip_space(&r);
        if (r.at != size) {
            fail(&r, "something follows the value");
        }
    }
    *offset = r.at;
    return r.problem;
}

void json_free(json_document *document) {
    free(document->values);
    free(document->text);
    memset(document, 0, sizeof *document);
}

const json_value *json_member(const json_document *document, const json_value *object, const char *key) {
    for (size_t i = object->first; i != 0; i = document->values[i].next) {
        if (strcmp(document->values[i].key, key) == 0) {
            return &document->values[i];
        }
    }
    return NULL;
}
