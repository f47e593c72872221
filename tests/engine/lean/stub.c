/* Stands in for libnvinfer, libnvinfer_plugin and libnvonnxparser under TensorRT's Python bindings. What the lean
 * runtime has (the plugin registry above all) comes from there; what it lacks does nothing here. */
#include <stddef.h>

void *createInferBuilder_INTERNAL(void *logger, int version) { return NULL; }
void *getBuilderPluginRegistry(int capability) { return NULL; }
_Bool initLibNvInferPlugins(void *logger, const char *name_space) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
int getNvOnnxParserVersion(void) { return 0; }
