// TensorRT's interfaces with all of their functions, none of which may be called: a stand-in overrides those that it
// plays. One list serves TensorRT 10.3 to 11.1: a function that one of them lacks is just a function there.
#pragma once

#include <NvInferRuntime.h>

#include <cstdlib>

namespace nvinfer1 {

class IRuntimeConfig;  // what older headers do not have
enum class EngineStat : int32_t;
namespace v_1_0 {
class IStreamReader;
class IStreamReaderV2;
}  // namespace v_1_0

namespace stand_in {

[[noreturn]] inline void unused() { std::abort(); }

class UnusedRuntime : public nvinfer1::apiv::VRuntime {
 public:
  IRuntime* getPImpl() noexcept { unused(); }
  ICudaEngine* deserializeCudaEngine(void const*, size_t) noexcept { unused(); }
  void setDLACore(int32_t) noexcept { unused(); }
  int32_t getDLACore() const noexcept { unused(); }
  int32_t getNbDLACores() const noexcept { unused(); }
  void setGpuAllocator(IGpuAllocator*) noexcept { unused(); }
  void setErrorRecorder(IErrorRecorder*) noexcept { unused(); }
  IErrorRecorder* getErrorRecorder() const noexcept { unused(); }
  ILogger* getLogger() const noexcept { unused(); }
  bool setMaxThreads(int32_t) noexcept { unused(); }
  int32_t getMaxThreads() const noexcept { unused(); }
  void setTemporaryDirectory(char const*) noexcept { unused(); }
  char const* getTemporaryDirectory() const noexcept { unused(); }
  void setTempfileControlFlags(TempfileControlFlags) noexcept { unused(); }
  TempfileControlFlags getTempfileControlFlags() const noexcept { unused(); }
  IPluginRegistry& getPluginRegistry() noexcept { unused(); }
  void setPluginRegistryParent(IPluginRegistry*) noexcept { unused(); }
  IRuntime* loadRuntime(char const*) noexcept { unused(); }
  void setEngineHostCodeAllowed(bool) noexcept { unused(); }
  bool getEngineHostCodeAllowed() const noexcept { unused(); }
  ICudaEngine* deserializeCudaEngineV2(v_1_0::IStreamReaderV2&) noexcept { unused(); }
  ICudaEngine* deserializeCudaEngine(v_1_0::IStreamReader&) noexcept { unused(); }
};

class UnusedEngine : public nvinfer1::apiv::VCudaEngine {
 public:
  ICudaEngine* getPImpl() noexcept { unused(); }
  int32_t getNbLayers() const noexcept { unused(); }
  IHostMemory* serialize() const noexcept { unused(); }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept { unused(); }
  bool isRefittable() const noexcept { unused(); }
  char const* getName() const noexcept { unused(); }
  int32_t getNbOptimizationProfiles() const noexcept { unused(); }
  EngineCapability getEngineCapability() const noexcept { unused(); }
  void setErrorRecorder(IErrorRecorder*) noexcept { unused(); }
  IErrorRecorder* getErrorRecorder() const noexcept { unused(); }
  TacticSources getTacticSources() const noexcept { unused(); }
  ProfilingVerbosity getProfilingVerbosity() const noexcept { unused(); }
  IEngineInspector* createEngineInspector() const noexcept { unused(); }
  Dims getTensorShape(char const*) const noexcept { unused(); }
  DataType getTensorDataType(char const*) const noexcept { unused(); }
  TensorLocation getTensorLocation(char const*) const noexcept { unused(); }
  bool isShapeInferenceIO(char const*) const noexcept { unused(); }
  TensorIOMode getTensorIOMode(char const*) const noexcept { unused(); }
  int32_t getTensorBytesPerComponent(char const*) const noexcept { unused(); }
  int32_t getTensorComponentsPerElement(char const*) const noexcept { unused(); }
  TensorFormat getTensorFormat(char const*) const noexcept { unused(); }
  char const* getTensorFormatDesc(char const*) const noexcept { unused(); }
  int32_t getTensorVectorizedDim(char const*) const noexcept { unused(); }
  Dims getProfileShape(char const*, int32_t, OptProfileSelector) const noexcept { unused(); }
  int32_t getNbIOTensors() const noexcept { unused(); }
  char const* getIOTensorName(int32_t) const noexcept { unused(); }
  HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept { unused(); }
  int32_t getNbAuxStreams() const noexcept { unused(); }
  int32_t getTensorBytesPerComponentV2(char const*, int32_t) const noexcept { unused(); }
  int32_t getTensorComponentsPerElementV2(char const*, int32_t) const noexcept { unused(); }
  TensorFormat getTensorFormatV2(char const*, int32_t) const noexcept { unused(); }
  char const* getTensorFormatDescV2(char const*, int32_t) const noexcept { unused(); }
  int32_t getTensorVectorizedDimV2(char const*, int32_t) const noexcept { unused(); }
  ISerializationConfig* createSerializationConfig() noexcept { unused(); }
  IHostMemory* serializeWithConfig(ISerializationConfig&) const noexcept { unused(); }
  IRefitter* createRefitter(ILogger&) noexcept { unused(); }
  int64_t getStreamableWeightsSize() const noexcept { unused(); }
  bool isDebugTensor(char const*) const noexcept { unused(); }
  bool setWeightStreamingBudgetV2(int64_t) noexcept { unused(); }
  int64_t getWeightStreamingBudgetV2() const noexcept { unused(); }
  int64_t getWeightStreamingAutomaticBudget() const noexcept { unused(); }
  int64_t getWeightStreamingScratchMemorySize() const noexcept { unused(); }
  int64_t getDeviceMemorySizeV2() const noexcept { unused(); }
  int64_t getDeviceMemorySizeForProfileV2(int32_t) const noexcept { unused(); }
  int64_t const* getProfileTensorValuesV2(char const*, int32_t, OptProfileSelector) const noexcept { unused(); }
  IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig*) noexcept { unused(); }
  IRuntimeConfig* createRuntimeConfig() noexcept { unused(); }
  int64_t getEngineStat(EngineStat) const noexcept { unused(); }
  char const* getAliasedInputTensor(char const*) const noexcept { unused(); }
  IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept { unused(); }
  size_t getDeviceMemorySize() const noexcept { unused(); }
  int32_t const* getProfileTensorValues(char const*, int32_t, OptProfileSelector) const noexcept { unused(); }
  bool hasImplicitBatchDimension() const noexcept { unused(); }
  size_t getDeviceMemorySizeForProfile(int32_t) const noexcept { unused(); }
  bool setWeightStreamingBudget(int64_t) noexcept { unused(); }
  int64_t getWeightStreamingBudget() const noexcept { unused(); }
  int64_t getMinimumWeightStreamingBudget() const noexcept { unused(); }
};

class UnusedContext : public nvinfer1::apiv::VExecutionContext {
 public:
  IExecutionContext* getPImpl() noexcept { unused(); }
  void setDebugSync(bool) noexcept { unused(); }
  bool getDebugSync() const noexcept { unused(); }
  void setProfiler(IProfiler*) noexcept { unused(); }
  IProfiler* getProfiler() const noexcept { unused(); }
  ICudaEngine const& getEngine() const noexcept { unused(); }
  void setName(char const*) noexcept { unused(); }
  char const* getName() const noexcept { unused(); }
  void setDeviceMemory(void*) noexcept { unused(); }
  int32_t getOptimizationProfile() const noexcept { unused(); }
  bool allInputDimensionsSpecified() const noexcept { unused(); }
  void setErrorRecorder(IErrorRecorder*) noexcept { unused(); }
  IErrorRecorder* getErrorRecorder() const noexcept { unused(); }
  bool executeV2(void* const*) noexcept { unused(); }
  bool setOptimizationProfileAsync(int32_t, cudaStream_t) noexcept { unused(); }
  void setEnqueueEmitsProfile(bool) noexcept { unused(); }
  bool getEnqueueEmitsProfile() const noexcept { unused(); }
  bool reportToProfiler() const noexcept { unused(); }
  bool setInputShape(char const*, Dims const&) noexcept { unused(); }
  Dims getTensorShape(char const*) const noexcept { unused(); }
  Dims getTensorStrides(char const*) const noexcept { unused(); }
  bool setTensorAddress(char const*, void*) noexcept { unused(); }
  void const* getTensorAddress(char const*) const noexcept { unused(); }
  bool setInputTensorAddress(char const*, void const*) noexcept { unused(); }
  bool setOutputTensorAddress(char const*, void*) noexcept { unused(); }
  int32_t inferShapes(int32_t, char const**) noexcept { unused(); }
  bool setInputConsumedEvent(cudaEvent_t) noexcept { unused(); }
  cudaEvent_t getInputConsumedEvent() const noexcept { unused(); }
  void* getOutputTensorAddress(char const*) const noexcept { unused(); }
  bool setOutputAllocator(char const*, IOutputAllocator*) noexcept { unused(); }
  IOutputAllocator* getOutputAllocator(char const*) noexcept { unused(); }
  int64_t getMaxOutputSize(char const*) const noexcept { unused(); }
  bool setTemporaryStorageAllocator(IGpuAllocator*) noexcept { unused(); }
  IGpuAllocator* getTemporaryStorageAllocator() const noexcept { unused(); }
  bool enqueueV3(cudaStream_t) noexcept { unused(); }
  void setPersistentCacheLimit(size_t) noexcept { unused(); }
  size_t getPersistentCacheLimit() const noexcept { unused(); }
  bool setNvtxVerbosity(ProfilingVerbosity) noexcept { unused(); }
  ProfilingVerbosity getNvtxVerbosity() const noexcept { unused(); }
  void setAuxStreams(cudaStream_t*, int32_t) noexcept { unused(); }
  bool setDebugListener(IDebugListener*) noexcept { unused(); }
  IDebugListener* getDebugListener() noexcept { unused(); }
  bool setTensorDebugState(char const*, bool) noexcept { unused(); }
  bool getDebugState(char const*) const noexcept { unused(); }
  bool setAllTensorsDebugState(bool) noexcept { unused(); }
  size_t updateDeviceMemorySizeForShapes() noexcept { unused(); }
  void setDeviceMemoryV2(void*, int64_t) noexcept { unused(); }
  IRuntimeConfig* getRuntimeConfig() const noexcept { unused(); }
  bool setUnfusedTensorsDebugState(bool) noexcept { unused(); }
  bool getUnfusedTensorsDebugState() const noexcept { unused(); }
  bool setCommunicator(void*) noexcept { unused(); }
  bool allInputShapesSpecified() const noexcept { unused(); }
};

class UnusedRegistry : public nvinfer1::IPluginRegistry {
 public:
  void setErrorRecorder(IErrorRecorder* const) noexcept { unused(); }
  IErrorRecorder* getErrorRecorder() const noexcept { unused(); }
  bool isParentSearchEnabled() const { unused(); }
  void setParentSearchEnabled(bool const) { unused(); }
  PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept { unused(); }
  void deregisterLibrary(PluginLibraryHandle) noexcept { unused(); }
  bool registerCreator(IPluginCreatorInterface&, AsciiChar const* const) noexcept { unused(); }
  IPluginCreatorInterface* const* getAllCreators(int32_t* const) const noexcept { unused(); }
  IPluginCreatorInterface* getCreator(AsciiChar const* const, AsciiChar const* const,
      AsciiChar const* const) noexcept { unused(); }
  bool deregisterCreator(IPluginCreatorInterface const&) noexcept { unused(); }
  IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept { unused(); }
  int32_t releasePluginResource(AsciiChar const*) noexcept { unused(); }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const) noexcept { unused(); }
  bool registerCreator(IPluginCreator&, AsciiChar const* const) noexcept { unused(); }
  IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept { unused(); }
  IPluginCreator* getPluginCreator(AsciiChar const* const, AsciiChar const* const,
      AsciiChar const* const) noexcept { unused(); }
  bool deregisterCreator(IPluginCreator const&) noexcept { unused(); }
};

}  // namespace stand_in
}  // namespace nvinfer1
