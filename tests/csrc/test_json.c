/* The JSON reader and SHA-256, on exact heap buffers so that the address sanitizer sees one byte too far. */
#include <string.h>

#include "check.h"
#include "json.h"
#include "sha256.h"

static const char *read_copy(const char *text, size_t size, json_document *document) {
    char *copy = malloc(size + (size == 0));
    size_t offset;
    CHECK(copy != NULL);
    memcpy(copy, text, size);
    const char *problem = json_read(copy, size, document, &offset);
    CHECK(offset <= size);
    free(copy);
    return problem;
}

static void test_accepts(void) {
    static const char text[] = " {\"a\": [1, -2, {\"b\": null}], \"c\\u00e9\\n\": \"\\\"\\u20ac\", "
                               "\"d\": true, \"e\": {}} ";
    json_document document;
    CHECK(read_copy(text, strlen(text), &document) == NULL);
    const json_value *root = &document.values[0];
    const json_value *a = json_member(&document, root, "a");
    CHECK(a != NULL && a->kind == JSON_ARRAY && document.values[a->first].integer == 1);
    CHECK(document.values[document.values[a->first].next].integer == -2);
    CHECK(strcmp(json_member(&document, root, "c\xc3\xa9\n")->text, "\"\xe2\x82\xac") == 0);
    CHECK(json_member(&document, root, "d")->integer == 1);
    CHECK(json_member(&document, root, "e")->first == 0);
    CHECK(json_member(&document, root, "b") == NULL);
    json_free(&document);
    for (size_t size = 0; size + 1 < strlen(text); size++) {
        CHECK(read_copy(text, size, &document) != NULL);
        json_free(&document);
    }
}

static void test_refuses(void) {
    static const char *const texts[] = {
        "", " ", "nul", "tru", "1.5", "1e3", "01", "-", "+1", "1234567890123456789", "[1,]", "[1 2]",
        "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{\"a\":1,\"a\":2}", "\"\\x\"", "\"\\u12\"",
        "\"\\u0000\"", "\"\\ud800\"", "\"\t\"", "\"a", "1 2", "[", "]",
        "[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]", "NaN", "'a'", "//", "\\",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_document document;
        CHECK(read_copy(texts[i], strlen(texts[i]), &document) != NULL);
        json_free(&document);
    }
}

static void test_many_values(void) {
    char text[20002] = "[";
    json_document document;
    for (size_t i = 0; i < 10000; i++) {
        memcpy(text + 1 + 2 * i, "7,", 2);
    }
    text[20000] = ']';
    CHECK(read_copy(text, 20001, &document) == NULL);
    size_t count = 0;
    for (size_t i = document.values[0].first; i != 0; i = document.values[i].next) {
        CHECK(document.values[i].integer == 7);
        count++;
    }
    CHECK(count == 10000);
    json_free(&document);
}

/* FIPS 180-4's examples, and lengths on both sides of the padding's edge. */
static void test_sha256(void) {
    char hex[65];
    sha256_hex("", 0, hex);
    CHECK(strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0);
    sha256_hex("abc", 3, hex);
    CHECK(strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 0);
    sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    CHECK(strcmp(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1") == 0);
    char million[1000];
    memset(million, 'a', sizeof million);
    sha256_hex(million, sizeof million, hex);
    CHECK(strcmp(hex, "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3") == 0);
}

int main(void) {
    test_accepts();
    test_refuses();
    test_many_values();
    test_sha256();
    return 0;
}
