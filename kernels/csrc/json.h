/* A strict reader of JSON with integers only, as kernel manifests are written.
 *
 * Values lie in one array; a container links its children through `next`. Text is kept unescaped in one buffer.
 */
#ifndef DDM_JSON_H
#define DDM_JSON_H

#include <stddef.h>
#include <stdint.h>

typedef enum json_kind { JSON_NULL, JSON_BOOL, JSON_INTEGER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

typedef struct json_value {
    json_kind kind;
    const char *key;  /* null outside an object */
    const char *text; /* of a string, null-terminated and without null inside */
    int64_t integer;  /* of an integer, or 0 and 1 of a bool */
    size_t first;     /* a container's first child, 0 where it is empty: the root is nobody's child */
    size_t next;      /* the next child of the same container, or 0 */
} json_value;

typedef struct json_document {
    json_value *values; /* the root is values[0] */
    size_t count;
    size_t capacity;
    char *text;
} json_document;

/* Read all of `content`. Returns null, or what is wrong; `offset` then says where. Free the document either way. */
const char *json_read(const char *content, size_t size, json_document *document, size_t *offset);
void json_free(json_document *document);

/* The member of `object` called `key`, or null. */
const json_value *json_member(const json_document *document, const json_value *object, const char *key);

#endif
