/* Balanced images from a ddm_rt bundle, for programs without Python.
 *
 *     ddm_rt_model *model;
 *     ddm_rt_session *session;
 *     ddm_rt_request *request;
 *     ddm_rt_images *images;
 *     ddm_rt_error *error;
 *     if ((error = ddm_rt_model_open("bundles/digits", DDM_RT_TERMINATED, NULL, &model)) ||
 *         (error = ddm_rt_session_open(model, NULL, &session)) ||
 *         (error = ddm_rt_request_create(&request)) ||
 *         (error = ddm_rt_request_set_n(request, 64)) ||
 *         (error = ddm_rt_generate(session, request, &images))) {
 *         fprintf(stderr, "%s\n", ddm_rt_error_message(error));
 *         ddm_rt_error_destroy(error);
 *     }
 *
 * A function that can fail returns an error, which the caller destroys; null where all went well. Nothing is thrown,
 * nothing ends the process, and what a failed call would have given is null.
 *
 * Text that goes in is UTF-8, a pointer and its size in bytes, and is copied. The size DDM_RT_TERMINATED stands for
 * text that ends with a null byte. Text that comes out ends with one.
 *
 * Models, sessions and cancel tokens may be used by any number of threads at a time, options and requests by one. What
 * ..._destroy and ..._close are given must not be in use; null is allowed. Handles that depend on another keep what
 * they need of it, so the order of closing is free.
 *
 * A process that was forked may close and destroy what it got from its parent, and use none of it: it opens a model of
 * its own. If the parent had opened a model, the child ends by _exit() or exec(): exit() would wait for threads of ONNX
 * Runtime's that it hasn't got.
 *
 * Every name begins with ddm_rt_ or DDM_RT_. From ABI 1 on functions and constants are added, and none is changed.
 */
#ifndef DDM_RT_H
#define DDM_RT_H

#include <stdint.h>

#if defined(__GNUC__)
#define DDM_RT_API __attribute__((visibility("default")))
#else
#define DDM_RT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The ABI of this header. It grows when something is added; a library serves programs of every ABI from 1 to its own.
 */
#define DDM_RT_ABI 1

/* ABI and version of the library that is loaded. */
DDM_RT_API int32_t ddm_rt_abi(void);
DDM_RT_API const char *ddm_rt_version(void); /* "0.1.0": that of the Python package beside it */

/* In place of a text's size: it ends with a null byte. */
#define DDM_RT_TERMINATED (-1)

/* What a function that can fail returns: see below. */
typedef struct ddm_rt_error ddm_rt_error;

/* Free text that a function gave as `char **`. */
DDM_RT_API void ddm_rt_free(char *text);

/* JSON, a list of {"name", "reason", "providers"}: every backend, with the reason why it isn't in this library or can't
 * run on this machine, null where it can, and the execution providers that its runtime was built with. Free it with
 * ddm_rt_free. */
DDM_RT_API ddm_rt_error *ddm_rt_backends(char **json);

/* ---- Errors: code, field and message ---- */

/* Codes of errors. More may be added: take one that you don't know for DDM_RT_INTERNAL. */
#define DDM_RT_OK 0
#define DDM_RT_BAD_INPUT 1     /* an argument, a manifest or a calibration; nothing was made */
#define DDM_RT_BAD_BUNDLE 2    /* missing something, altered, truncated or foreign */
#define DDM_RT_BAD_LEDGER 3    /* damaged, locked, of another bundle, closed */
#define DDM_RT_NO_BACKEND 4    /* backend or provider can't run here, or not this bundle; none is taken in its place */
#define DDM_RT_CANCELLED 5     /* by a token, or by on_step */
#define DDM_RT_NOT_DELIVERED 6 /* a callback refused the images */
#define DDM_RT_OUT_OF_MEMORY 7
#define DDM_RT_INTERNAL 8 /* an error of this library: please report it */
#define DDM_RT_BAD_ABI 9  /* the program was built for a newer library */

/* The code; DDM_RT_OK of null. */
DDM_RT_API int32_t ddm_rt_error_code(const ddm_rt_error *error);
/* The argument, file or field of a file that it is about, "" where it is about none of them; and what is wrong in
 * words. Never null; they live as long as the error. */
DDM_RT_API const char *ddm_rt_error_field(const ddm_rt_error *error);
DDM_RT_API const char *ddm_rt_error_message(const ddm_rt_error *error);
DDM_RT_API void ddm_rt_error_destroy(ddm_rt_error *error);

/* ---- Log: what doesn't stop anything ---- */

/* Levels of messages. */
#define DDM_RT_LOG_DEBUG 0
#define DDM_RT_LOG_INFO 1
#define DDM_RT_LOG_WARNING 2
#define DDM_RT_LOG_ERROR 3

/* Told a message. It may be called on any thread, and must not throw. The text lives as long as the call. It may be
 * called until the model and all its sessions are closed. */
typedef void (*ddm_rt_log)(void *user, int32_t level, const char *message);

/* ---- Cancel tokens: one may be shared by any number of calls ---- */

typedef struct ddm_rt_cancel ddm_rt_cancel;

/* A token that isn't set. Free it with ddm_rt_cancel_destroy, also while calls have it. */
DDM_RT_API ddm_rt_error *ddm_rt_cancel_create(ddm_rt_cancel **cancel);
DDM_RT_API void ddm_rt_cancel_destroy(ddm_rt_cancel *cancel);

/* End every call that has the token, from any thread or signal handler: before its next step, or while it waits for
 * others' steps. A call that waits for a locked ledger ends when that does. */
DDM_RT_API void ddm_rt_cancel_set(ddm_rt_cancel *cancel);
/* Make it good for the next call. */
DDM_RT_API void ddm_rt_cancel_reset(ddm_rt_cancel *cancel);
DDM_RT_API int32_t ddm_rt_cancel_is_set(const ddm_rt_cancel *cancel); /* 1 or 0 */

/* ---- Models: a bundle's weights on a backend, once for all sessions ---- */

typedef struct ddm_rt_model_options ddm_rt_model_options;
typedef struct ddm_rt_model ddm_rt_model;

/* Options with the defaults of a model that is opened without any. Free them with ddm_rt_model_options_destroy. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_create(ddm_rt_model_options **options);
DDM_RT_API void ddm_rt_model_options_destroy(ddm_rt_model_options *options);

/* The backend: "auto" (the default) or a name of ddm_rt_backends(). */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_backend(ddm_rt_model_options *options, const char *name,
                                                          int64_t size);

/* ONNX Runtime's execution provider: "CPU" (the default), "CUDA", "TensorRT", "OpenVINO", "CoreML" or another that it
 * was built with. One that isn't there or can't start is DDM_RT_NO_BACKEND; what a provider has no operator for is
 * computed on the CPU. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_provider(ddm_rt_model_options *options, const char *name,
                                                           int64_t size);
/* One of the provider's own options: "device_id" = "0". */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_provider_option(ddm_rt_model_options *options, const char *key,
                                                                  int64_t key_size, const char *value,
                                                                  int64_t value_size);

/* CPU threads of one call; by default all that the process may use. Part of what decides an image's bytes. On the CPU
 * as many calls are made at a time as there is room for, and at least two; with another provider one. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_threads(ddm_rt_model_options *options, int32_t threads);

/* Other than 0 (it is 1 by default): requests of all threads share the denoiser's calls. Images are the same either
 * way. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_batching(ddm_rt_model_options *options, int32_t batching);

/* ONNX Runtime's shared library, 1.21 or later: a path, or a name that the system finds. By default what the
 * environment variable DDM_RT_ONNXRUNTIME says, else what this library was built with. One for the whole process. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_onnxruntime(ddm_rt_model_options *options, const char *library,
                                                              int64_t size);

/* Bytes of prompts and conditions that are kept for later requests; by default 256 MiB each. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_cache(ddm_rt_model_options *options, int64_t bytes);

/* Told the messages of `level` and above of the model, and ONNX Runtime's of its graphs. Without it those of ONNX
 * Runtime go to stderr, and the others nowhere. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_log(ddm_rt_model_options *options, int32_t level, ddm_rt_log log,
                                                      void *user);

/* Told, while the model opens, the bytes of files that are checked and of all, on the thread that opens. */
typedef void (*ddm_rt_progress)(void *user, int64_t done, int64_t total);
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_progress(ddm_rt_model_options *options, ddm_rt_progress progress,
                                                           void *user);
/* A token that ends the opening. */
DDM_RT_API ddm_rt_error *ddm_rt_model_options_set_cancel(ddm_rt_model_options *options, const ddm_rt_cancel *cancel);

/* Open the bundle in `directory`, of format 1 or 2, after checking the hash of every file that decides an image's
 * content. One that a later version wrote opens too, unless it says that it needs what this version doesn't know.
 * `options` may be null, and may be destroyed afterwards. The macro says for which ABI the program was built. */
DDM_RT_API ddm_rt_error *ddm_rt_model_open_abi(int32_t abi, const char *directory, int64_t size,
                                               const ddm_rt_model_options *options, ddm_rt_model **model);
#define ddm_rt_model_open(directory, size, options, model) \
    ddm_rt_model_open_abi(DDM_RT_ABI, directory, size, options, model)
DDM_RT_API void ddm_rt_model_close(ddm_rt_model *model);

/* JSON: {"bundle_id", "former_ids", "name", "family", "num_codes", "num_top_codes", "image_size", "size_multiple",
 * "prompt_free", "backend", "precision", "threads", "versions"}. Manifests and calibrations of the former ids hold for
 * this bundle; ledgers are moved to it by `ddm-rt upgrade`. It lives as long as the handle, as the texts below do; all
 * are null of a null handle. */
DDM_RT_API const char *ddm_rt_model_describe(const ddm_rt_model *model);
DDM_RT_API const char *ddm_rt_model_bundle_id(const ddm_rt_model *model);
DDM_RT_API const char *ddm_rt_model_name(const ddm_rt_model *model);
DDM_RT_API const char *ddm_rt_model_family(const ddm_rt_model *model);    /* "pixel", "sd" or "sdxl" */
DDM_RT_API const char *ddm_rt_model_backend(const ddm_rt_model *model);   /* "onnxruntime" */
DDM_RT_API const char *ddm_rt_model_provider(const ddm_rt_model *model);  /* "CPUExecutionProvider" */
DDM_RT_API const char *ddm_rt_model_precision(const ddm_rt_model *model); /* "fp32" */

/* Numbers of codes and top codes, pixels of a side at the training size, what heights and widths are multiples of, CPU
 * threads, and whether the bundle takes no prompts: 1 or 0. All are 0 of a null handle. */
DDM_RT_API int64_t ddm_rt_model_num_codes(const ddm_rt_model *model);
DDM_RT_API int64_t ddm_rt_model_num_top_codes(const ddm_rt_model *model);
DDM_RT_API int64_t ddm_rt_model_image_size(const ddm_rt_model *model);
DDM_RT_API int64_t ddm_rt_model_size_multiple(const ddm_rt_model *model);
DDM_RT_API int64_t ddm_rt_model_threads(const ddm_rt_model *model);
DDM_RT_API int32_t ddm_rt_model_prompt_free(const ddm_rt_model *model);

/* Forget the prompts and conditions that are kept. Requests under way go on. */
DDM_RT_API void ddm_rt_model_trim(ddm_rt_model *model);

/* ---- Sessions: a ledger, a log and limits over a model ---- */

typedef struct ddm_rt_session_options ddm_rt_session_options;
typedef struct ddm_rt_session ddm_rt_session;

/* Options with the defaults of a session that is opened without any. Free them with ddm_rt_session_options_destroy. */
DDM_RT_API ddm_rt_error *ddm_rt_session_options_create(ddm_rt_session_options **options);
DDM_RT_API void ddm_rt_session_options_destroy(ddm_rt_session_options *options);

/* File that keeps the counts of scopes: Python and other processes may use it at the same time. A symbolic link to
 * a file is that file. By default counts are in memory and end with the session. `fsync` other than 0: it also survives
 * a power loss. */
DDM_RT_API ddm_rt_error *ddm_rt_session_options_set_ledger(ddm_rt_session_options *options, const char *path,
                                                           int64_t size, int32_t fsync);

/* Told the messages of `level` and above about the session's requests: a prompt that is cut off (once, as
 * long as it is kept), a replay elsewhere. */
DDM_RT_API ddm_rt_error *ddm_rt_session_options_set_log(ddm_rt_session_options *options, int32_t level, ddm_rt_log log,
                                                        void *user);

/* What one request may ask for at most, before anything is allocated for it: images (2^16), pixels of an image (2^26),
 * and bytes of all images that it keeps (2^34). */
DDM_RT_API ddm_rt_error *ddm_rt_session_options_set_most_images(ddm_rt_session_options *options, int64_t images);
DDM_RT_API ddm_rt_error *ddm_rt_session_options_set_most_pixels(ddm_rt_session_options *options, int64_t pixels);
DDM_RT_API ddm_rt_error *ddm_rt_session_options_set_most_bytes(ddm_rt_session_options *options, int64_t bytes);

/* Open a session. `options` may be null, and may be destroyed afterwards; the model may be closed. */
DDM_RT_API ddm_rt_error *ddm_rt_session_open(ddm_rt_model *model, const ddm_rt_session_options *options,
                                             ddm_rt_session **session);
DDM_RT_API void ddm_rt_session_close(ddm_rt_session *session);

/* JSON, a list of {"scope", "target", "calibration_id", "issued", "leased", "pooled"}: where the streams of a scope
 * stand, or of all where `scope` is null (not empty), 1,000 at most. Each of the last three is {"CODE": IMAGES}:
 * positions that were handed out, those of requests under way, and those that were given back. Free it with
 * ddm_rt_free. */
DDM_RT_API ddm_rt_error *ddm_rt_session_ledger(ddm_rt_session *session, const char *scope, int64_t size, char **json);

/* ---- A request: the arguments of Python's Pipeline.generate; what isn't set takes the bundle's default ---- */

typedef struct ddm_rt_request ddm_rt_request;

/* A request with the bundle's defaults: one image of seed 0. Free it with ddm_rt_request_destroy. */
DDM_RT_API ddm_rt_error *ddm_rt_request_create(ddm_rt_request **request);
DDM_RT_API void ddm_rt_request_destroy(ddm_rt_request *request);

/* Number of images, at least 1; 1 by default. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_n(ddm_rt_request *request, int64_t n);
/* Seed of the request, 0 by default. Image i has a seed of its own that is made of it; image 0 has this one. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_seed(ddm_rt_request *request, uint64_t seed);

/* One prompt, or several in turn: image i has number i % count. For bundles that take prompts. */
DDM_RT_API ddm_rt_error *ddm_rt_request_add_prompt(ddm_rt_request *request, const char *prompt, int64_t size);
/* Text to stay away from: it takes the place of the empty prompt. For bundles that take prompts. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_negative_prompt(ddm_rt_request *request, const char *prompt, int64_t size);
/* Guidance on the prompt. For bundles that take prompts. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_guidance_scale(ddm_rt_request *request, double scale);
/* Guidance on the code. With a prompt, a scale other than the guidance on the prompt makes each step half as long
 * again. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_indicator_guidance_scale(ddm_rt_request *request, double scale);
/* Guidance in the steps from `start` to `stop` alone, fractions of all steps. Steps outside have one branch, and cost
 * less. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_guidance_interval(ddm_rt_request *request, double start, double stop);
/* Adaptive projected guidance: a difference of two branches has the norm `norm` (above 0) at most, and of its part
 * along the output `eta` is kept (0 or more). */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_apg(ddm_rt_request *request, double norm, double eta);
/* CADS: noise of this scale (above 0) on the prompt's tokens, so that the images of one prompt differ more. It is whole
 * down to `begin` and gone from `end` on; both are shares of the training timesteps, where 1 is pure noise. For bundles
 * that take prompts. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_cads(ddm_rt_request *request, double scale, double end, double begin);

/* How many of the steps call the model, by a cache of the bundle that was found for the request's settings; `ddm-rt
 * cache` finds one. What they gave makes up for the others. DDM_RT_CACHE_AUTO takes the one with the fewest calls of
 * those that were judged to change nothing, and every step where there is none. DDM_RT_CACHE_OFF (the default): every
 * step. */
#define DDM_RT_CACHE_OFF 0
#define DDM_RT_CACHE_AUTO (-1)
DDM_RT_API ddm_rt_error *ddm_rt_request_set_cache(ddm_rt_request *request, int64_t calls);

/* Sampling steps of each image. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_num_steps(ddm_rt_request *request, int64_t num_steps);
/* The sampler: "ddpm", "ddim", "euler", "dpm++2m" or "lcm". */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_sampler(ddm_rt_request *request, const char *sampler, int64_t size);
/* Height and width in pixels: multiples of the bundle's "size_multiple". */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_height(ddm_rt_request *request, int64_t pixels);
DDM_RT_API ddm_rt_error *ddm_rt_request_set_width(ddm_rt_request *request, int64_t pixels);

/* One code for each of the n images in place of a quota; -1 is the null code. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_codes(ddm_rt_request *request, const int64_t *codes, int64_t count);
/* Shares of the images: "uniform", of top codes ("code:0=.3,code:1=.7"), or of groups where the bundle has a
 * calibration. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_target(ddm_rt_request *request, const char *target, int64_t size);
/* "auto" (the default): codes by quota where the bundle has codes. "on" refuses a bundle that has none. "off": the null
 * code. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_balance(ddm_rt_request *request, const char *balance, int64_t size);
/* The codes go on where the last request of this scope and target stopped. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_scope(ddm_rt_request *request, const char *scope, int64_t size);
/* Other than 0: the codes are permuted within the request by its seed. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_shuffle(ddm_rt_request *request, int32_t shuffle);
/* Other than 0: take a calibration that was made for other settings. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_allow_stale(ddm_rt_request *request, int32_t allow_stale);
/* Other than 0 (it is 1 by default): the image files say that a model made them, by which bundle and from which seed.
 * The manifest then says that they do, so write what ddm_rt_images_xmp gives into each file, or set this to 0. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_provenance(ddm_rt_request *request, int32_t provenance);
/* Other than 0: they say the code, too. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_provenance_code(ddm_rt_request *request, int32_t provenance_code);
/* A prompt with this word (or phrase) gets the null code and counts in no quota. Any number of them. */
DDM_RT_API ddm_rt_error *ddm_rt_request_add_leave_alone(ddm_rt_request *request, const char *word, int64_t size);
/* In place of that: a list of words in JSON, or an object with a list for each scope ("*": any). `name` is what errors
 * call it, or null. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_leave_alone_json(ddm_rt_request *request, const char *json, int64_t size,
                                                             const char *name, int64_t name_size);

/* Told the steps done and the steps in all, of all images, on the thread that generates; some may be left out. Where it
 * returns other than 0, generating ends with DDM_RT_CANCELLED. */
typedef int32_t (*ddm_rt_on_step)(void *user, int64_t done, int64_t total);
DDM_RT_API ddm_rt_error *ddm_rt_request_set_on_step(ddm_rt_request *request, ddm_rt_on_step on_step, void *user);

/* Given images as they are done, some at a time and in any order, on the thread that generates: ddm_rt_images_index()
 * says which. They belong to the library until the call returns. Where it returns other than 0, a scope's draws are
 * given back, and generating ends with DDM_RT_NOT_DELIVERED. */
typedef struct ddm_rt_images ddm_rt_images;
typedef int32_t (*ddm_rt_on_images)(void *user, const ddm_rt_images *images);
DDM_RT_API ddm_rt_error *ddm_rt_request_set_on_images(ddm_rt_request *request, ddm_rt_on_images on_images, void *user);

/* The same, once, with all images, before a scope's draws count as done. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_deliver(ddm_rt_request *request, ddm_rt_on_images deliver, void *user);

/* 0 (it is 1 by default): pixels are given to on_images and not kept. What is left of an image, about 2 KiB, is in the
 * manifest. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_keep(ddm_rt_request *request, int32_t keep);

/* A token that ends generating; null for none. */
DDM_RT_API ddm_rt_error *ddm_rt_request_set_cancel(ddm_rt_request *request, const ddm_rt_cancel *cancel);

/* ---- Images ---- */

/* The images of a request. Free them with ddm_rt_images_destroy. */
DDM_RT_API ddm_rt_error *ddm_rt_generate(ddm_rt_session *session, const ddm_rt_request *request,
                                         ddm_rt_images **images);

/* The images of a manifest.json again, or only number `index` unless that is DDM_RT_ALL. `manifest` is the file's
 * content, `name` what errors call it, or null. Of `request`, which may be null, the callbacks, the token and what is
 * kept count. The ledger isn't asked. */
#define DDM_RT_ALL INT64_MIN
DDM_RT_API ddm_rt_error *ddm_rt_replay(ddm_rt_session *session, const char *manifest, int64_t size, const char *name,
                                       int64_t name_size, int64_t index, const ddm_rt_request *request,
                                       ddm_rt_images **images);

/* Free images, and all that was read from them. */
DDM_RT_API void ddm_rt_images_destroy(ddm_rt_images *images);

/* Number of images, and their height and width in pixels. Inside on_images it is the number of those that are given. */
DDM_RT_API int64_t ddm_rt_images_count(const ddm_rt_images *images);
DDM_RT_API int64_t ddm_rt_images_height(const ddm_rt_images *images);
DDM_RT_API int64_t ddm_rt_images_width(const ddm_rt_images *images);

/* RGB bytes of image `index`, row by row: height * width * 3. Null beyond the last, and where pixels weren't kept. They
 * live as long as the images. */
DDM_RT_API const uint8_t *ddm_rt_images_rgb(const ddm_rt_images *images, int64_t index);

/* Which of the request's images image `index` is, from 0: the same number, but inside on_images. -1 beyond the last. */
DDM_RT_API int64_t ddm_rt_images_index(const ddm_rt_images *images, int64_t index);

/* The code of image `index`, its top code, and its seed. -1 is the null code. Beyond the last, codes are -1 and the
 * seed is 0. */
DDM_RT_API int64_t ddm_rt_images_code(const ddm_rt_images *images, int64_t index);
DDM_RT_API int64_t ddm_rt_images_top_code(const ddm_rt_images *images, int64_t index);
DDM_RT_API uint64_t ddm_rt_images_seed(const ddm_rt_images *images, int64_t index);
/* The name that the manifest has for it: "00000.png". Null beyond the last. */
DDM_RT_API const char *ddm_rt_images_file(const ddm_rt_images *images, int64_t index);

/* What the file of image `index` says of itself, or that of a sheet of all images where it is DDM_RT_ALL: an XMP
 * packet, UTF-8. In a PNG it is an iTXt chunk with the keyword "XML:com.adobe.xmp". Null beyond the last, and where the
 * request has no provenance. It lives as long as the images. */
DDM_RT_API const char *ddm_rt_images_xmp(const ddm_rt_images *images, int64_t index);

/* manifest.json's content, which ddm_rt_replay and `ddm-rt sample --from` take. */
DDM_RT_API const char *ddm_rt_images_manifest(const ddm_rt_images *images);

#ifdef __cplusplus
}
#endif

#endif
