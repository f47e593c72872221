/* Balanced images from a ddm_rt bundle, for programs without Python.
 *
 *     ddm_rt_pipeline *pipeline;
 *     ddm_rt_pipeline_open("bundles/digits", NULL, &pipeline);
 *     ddm_rt_request *request;
 *     ddm_rt_request_create(&request);
 *     ddm_rt_request_set_n(request, 64);
 *     ddm_rt_images *images;
 *     ddm_rt_generate(pipeline, request, &images);
 *
 * A function that can fail returns a status, and ddm_rt_last_error() says in words what was wrong: the words of the
 * Python package. Nothing is thrown, nothing ends the process, and what a failed call would have returned is null.
 *
 * Text is UTF-8 that ends with a null, and is copied. Options and requests belong to one thread at a time, but for
 * ddm_rt_request_cancel. A pipeline may generate on any number of threads at a time. What ..._destroy and ..._close are
 * given must not be in use; null is allowed.
 *
 * Every name begins with ddm_rt_ or DDM_RT_.
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

/* The ABI of this header. It grows with each change; a library serves programs of every ABI from 1 to its own. */
#define DDM_RT_ABI 1

/* ABI and version of the library that is loaded. */
DDM_RT_API int32_t ddm_rt_abi(void);
DDM_RT_API const char *ddm_rt_version(void); /* "0.1.0": that of the Python package beside it */

/* What a function that can fail returns. */
typedef int32_t ddm_rt_status;
#define DDM_RT_OK 0
#define DDM_RT_BAD_INPUT 1     /* an argument, a manifest or a calibration; nothing was made */
#define DDM_RT_BAD_BUNDLE 2    /* missing something, altered, truncated or foreign */
#define DDM_RT_BAD_LEDGER 3    /* damaged, locked, of another bundle, closed */
#define DDM_RT_NO_BACKEND 4    /* can't run here, or not this bundle; nothing else is taken in its place */
#define DDM_RT_CANCELLED 5     /* by ddm_rt_request_cancel */
#define DDM_RT_NOT_DELIVERED 6 /* the delivery callback refused the images */
#define DDM_RT_OUT_OF_MEMORY 7
#define DDM_RT_INTERNAL 8 /* an error of this library: please report it */

/* What went wrong in this thread's last call that didn't return DDM_RT_OK. Never null; valid until its next one. */
DDM_RT_API const char *ddm_rt_last_error(void);

/* JSON, a list of {"name", "reason"}: every backend, with the reason why it isn't in this library or can't run on this
 * machine, null where it can. Valid until this thread's next call of it; null where memory is short. */
DDM_RT_API const char *ddm_rt_backends(void);

/* ---- Opening a bundle ---- */

typedef struct ddm_rt_options ddm_rt_options;
typedef struct ddm_rt_pipeline ddm_rt_pipeline;

/* Told, on the thread that calls, what Python would log as a warning: a prompt that is cut off, a replay elsewhere. */
typedef void (*ddm_rt_warn)(void *user, const char *message);

/* Options with the defaults of a pipeline that is opened without any. Free them with ddm_rt_options_destroy. */
DDM_RT_API ddm_rt_status ddm_rt_options_create(ddm_rt_options **options);
DDM_RT_API void ddm_rt_options_destroy(ddm_rt_options *options);

/* The backend: "auto" (the default) or a name of ddm_rt_backends(). */
DDM_RT_API ddm_rt_status ddm_rt_options_set_backend(ddm_rt_options *options, const char *name);

/* CPU threads of one call; by default all that the process may use. Part of what decides an image's bytes. */
DDM_RT_API ddm_rt_status ddm_rt_options_set_threads(ddm_rt_options *options, int32_t threads);

/* File that keeps the counts of scopes: Python and other processes may use it at the same time. A link to a file is
 * that file. By default counts are in memory and end with the pipeline. `fsync` other than 0: it also survives a power loss. */
DDM_RT_API ddm_rt_status ddm_rt_options_set_ledger(ddm_rt_options *options, const char *path, int32_t fsync);

/* ONNX Runtime's shared library, 1.21 or later: a path, or a name that the system finds. By default what the environment
 * variable DDM_RT_ONNXRUNTIME says, else what this library was built with. One for the whole process. */
DDM_RT_API ddm_rt_status ddm_rt_options_set_onnxruntime(ddm_rt_options *options, const char *library);

/* `warn` may be called on every thread that uses the pipeline, and must not throw. */
DDM_RT_API ddm_rt_status ddm_rt_options_set_warn(ddm_rt_options *options, ddm_rt_warn warn, void *user);

/* Open the bundle in `directory`, of format 1 or 2, after checking the hash of every file that decides an image's content.
 * One that a later version wrote opens too, unless it says that it needs what this version doesn't know. `options` may be
 * null, and may be destroyed afterwards. */
DDM_RT_API ddm_rt_status ddm_rt_pipeline_open(const char *directory, const ddm_rt_options *options,
                                              ddm_rt_pipeline **pipeline);
DDM_RT_API void ddm_rt_pipeline_close(ddm_rt_pipeline *pipeline);

/* JSON: {"bundle_id", "former_ids", "name", "family", "num_codes", "num_top_codes", "image_size", "size_multiple", "prompt_free",
 * "backend", "precision", "threads", "versions"}. It lives as long as the pipeline. Manifests and calibrations of the former
 * ids hold for this bundle; ledgers are moved to it by `ddm-rt upgrade`. */
DDM_RT_API const char *ddm_rt_pipeline_describe(const ddm_rt_pipeline *pipeline);

/* ---- A request: the arguments of Python's Pipeline.generate; what isn't set takes the bundle's default ---- */

typedef struct ddm_rt_request ddm_rt_request;

/* A request with the bundle's defaults: one image of seed 0. Free it with ddm_rt_request_destroy. */
DDM_RT_API ddm_rt_status ddm_rt_request_create(ddm_rt_request **request);
DDM_RT_API void ddm_rt_request_destroy(ddm_rt_request *request);

/* Number of images, at least 1; 1 by default. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_n(ddm_rt_request *request, int64_t n);
/* Seed of the request, 0 by default. Image i has a seed of its own that is made of it; image 0 has this one. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_seed(ddm_rt_request *request, uint64_t seed);

/* One prompt, or several in turn: image i has number i % count. For bundles that take prompts. */
DDM_RT_API ddm_rt_status ddm_rt_request_add_prompt(ddm_rt_request *request, const char *prompt);
/* Text to stay away from: it takes the place of the empty prompt. For bundles that take prompts. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_negative_prompt(ddm_rt_request *request, const char *prompt);
/* Guidance on the prompt. For bundles that take prompts. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_guidance_scale(ddm_rt_request *request, double scale);
/* Guidance on the code. With a prompt, a scale other than the guidance on the prompt makes each step half as long again. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_indicator_guidance_scale(ddm_rt_request *request, double scale);
/* Guidance in the steps from `start` to `stop` alone, fractions of all steps. Steps outside have one branch, and cost less. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_guidance_interval(ddm_rt_request *request, double start, double stop);
/* Adaptive projected guidance: a difference of two branches has the norm `norm` (above 0) at most, and of its part along the
 * output `eta` is kept (0 or more). */
DDM_RT_API ddm_rt_status ddm_rt_request_set_apg(ddm_rt_request *request, double norm, double eta);
/* CADS: noise of this scale (above 0) on the prompt's tokens, so that the images of one prompt differ more. It is whole down to
 * `begin` and gone from `end` on; both are shares of the training timesteps, where 1 is pure noise. For bundles that take
 * prompts. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_cads(ddm_rt_request *request, double scale, double end, double begin);

/* Sampling steps of each image. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_num_steps(ddm_rt_request *request, int64_t num_steps);
/* The sampler: "ddpm", "ddim", "euler", "dpm++2m" or "lcm". */
DDM_RT_API ddm_rt_status ddm_rt_request_set_sampler(ddm_rt_request *request, const char *sampler);
/* Height and width in pixels: multiples of the bundle's "size_multiple". */
DDM_RT_API ddm_rt_status ddm_rt_request_set_height(ddm_rt_request *request, int64_t pixels);
DDM_RT_API ddm_rt_status ddm_rt_request_set_width(ddm_rt_request *request, int64_t pixels);

/* One code for each of the n images in place of a quota; -1 is the null code. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_codes(ddm_rt_request *request, const int64_t *codes, int64_t count);
/* Shares of the images: "uniform", of top codes ("code:0=.3,code:1=.7"), or of groups where the bundle has a calibration. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_target(ddm_rt_request *request, const char *target);
/* "auto" (the default): codes by quota where the bundle has codes. "on" refuses a bundle that has none. "off": the null code. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_balance(ddm_rt_request *request, const char *balance);
/* The codes go on where the last request of this scope and target stopped. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_scope(ddm_rt_request *request, const char *scope);
/* Other than 0: the codes are permuted within the request by its seed. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_shuffle(ddm_rt_request *request, int32_t shuffle);
/* Other than 0: take a calibration that was made for other settings. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_allow_stale(ddm_rt_request *request, int32_t allow_stale);
/* Other than 0 (it is 1 by default): the image files say that a model made them, by which bundle and from which seed. The
 * manifest then says that they do, so write what ddm_rt_images_xmp gives into each file, or set this to 0. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_provenance(ddm_rt_request *request, int32_t provenance);
/* Other than 0: they say the code, too. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_provenance_code(ddm_rt_request *request, int32_t provenance_code);
/* A prompt with this word (or phrase) gets the null code and counts in no quota. Any number of them. */
DDM_RT_API ddm_rt_status ddm_rt_request_add_leave_alone(ddm_rt_request *request, const char *word);
/* In place of that: a list of words in JSON, or an object with a list for each scope ("*": any). `name` is what errors
 * call it, or null. */
DDM_RT_API ddm_rt_status ddm_rt_request_set_leave_alone_json(ddm_rt_request *request, const char *json, int64_t size,
                                                             const char *name);

/* Told the steps done and the steps in all, on the thread that generates. */
typedef void (*ddm_rt_on_step)(void *user, int64_t done, int64_t total);
DDM_RT_API ddm_rt_status ddm_rt_request_set_on_step(ddm_rt_request *request, ddm_rt_on_step on_step, void *user);

/* Given the images before a scope's draws count as done. Where it returns other than 0, they are given back, and
 * generating ends with DDM_RT_NOT_DELIVERED. The images belong to the library until ddm_rt_generate has returned. */
typedef struct ddm_rt_images ddm_rt_images;
typedef int32_t (*ddm_rt_deliver)(void *user, const ddm_rt_images *images);
DDM_RT_API ddm_rt_status ddm_rt_request_set_deliver(ddm_rt_request *request, ddm_rt_deliver deliver, void *user);

/* Cancel a request, from any thread, before or while it is used: it ends before its next step. A cancelled request stays so. */
DDM_RT_API ddm_rt_status ddm_rt_request_cancel(ddm_rt_request *request);

/* ---- Images ---- */

/* The images of a request. Free them with ddm_rt_images_destroy. */
DDM_RT_API ddm_rt_status ddm_rt_generate(ddm_rt_pipeline *pipeline, const ddm_rt_request *request,
                                         ddm_rt_images **images);

/* The images of a manifest.json again, or only number `index` unless that is DDM_RT_ALL. `manifest` is the file's content,
 * `name` what errors call it, or null. Of `request`, which may be null, the callbacks and the cancellation count. The
 * ledger isn't asked. */
#define DDM_RT_ALL INT64_MIN
DDM_RT_API ddm_rt_status ddm_rt_replay(ddm_rt_pipeline *pipeline, const char *manifest, int64_t size, const char *name,
                                       int64_t index, const ddm_rt_request *request, ddm_rt_images **images);

/* Free images, and all that was read from them. */
DDM_RT_API void ddm_rt_images_destroy(ddm_rt_images *images);

/* Number of images, and their height and width in pixels. */
DDM_RT_API int64_t ddm_rt_images_count(const ddm_rt_images *images);
DDM_RT_API int64_t ddm_rt_images_height(const ddm_rt_images *images);
DDM_RT_API int64_t ddm_rt_images_width(const ddm_rt_images *images);

/* RGB bytes of image `index`, row by row: height * width * 3. Null beyond the last. They live as long as the images. */
DDM_RT_API const uint8_t *ddm_rt_images_rgb(const ddm_rt_images *images, int64_t index);

/* The code of image `index`, its top code, and its seed. -1 is the null code. Beyond the last, codes are -1 and the seed is 0. */
DDM_RT_API int64_t ddm_rt_images_code(const ddm_rt_images *images, int64_t index);
DDM_RT_API int64_t ddm_rt_images_top_code(const ddm_rt_images *images, int64_t index);
DDM_RT_API uint64_t ddm_rt_images_seed(const ddm_rt_images *images, int64_t index);
/* The name that the manifest has for it: "00000.png". Null beyond the last. */
DDM_RT_API const char *ddm_rt_images_file(const ddm_rt_images *images, int64_t index);

/* What the file of image `index` says of itself, or that of a sheet of all images where it is DDM_RT_ALL: an XMP packet, UTF-8.
 * In a PNG it is an iTXt chunk with the keyword "XML:com.adobe.xmp". Null beyond the last, and where the request has no
 * provenance. It lives as long as the images. */
DDM_RT_API const char *ddm_rt_images_xmp(const ddm_rt_images *images, int64_t index);

/* manifest.json's content, which ddm_rt_replay and `ddm-rt sample --from` take. */
DDM_RT_API const char *ddm_rt_images_manifest(const ddm_rt_images *images);

#ifdef __cplusplus
}
#endif

#endif
