"""The driver layer on a fake driver in host memory, which is never a run on a device, and over the real bindings."""

import importlib.util
import re
import threading
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("needs cuda-bindings", allow_module_level=True)

import cuda.bindings.driver as real
from conftest import has_cuda
from fake_cuda import FakeDriver, fake_cubin
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.engine.tensorrt import cuda
from ddm_rt.engine.tensorrt.buffers import Arrays
from ddm_rt.errors import DdmError
from ddm_rt.kernels.pack import Kernel
from ddm_rt.kernels.ptx import Argument


@pytest.fixture(params=[False, True], ids=["lazy", "eager"])
def driver(request: pytest.FixtureRequest) -> FakeDriver:
    return FakeDriver(eager=request.param)


@pytest.fixture
def device(driver: FakeDriver) -> cuda.Device:
    return cuda.Device(driver)


@pytest.fixture
def arrays(device: cuda.Device) -> Arrays:
    return Arrays(device, cuda.Stream(device))


def test_the_real_bindings_have_every_name_that_is_used() -> None:
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\b(?:cu[A-Z]|CU[a-z])\w+\b", source)) - {"CUstream"}  # of which prose speaks
    assert len(names) > 40
    assert [name for name in sorted(names) if not hasattr(real, name)] == []
    assert [name for name in sorted(names) if not hasattr(FakeDriver, name)] == []


@pytest.mark.skipif(has_cuda(), reason="this machine has a driver")
def test_without_a_driver_the_reason_is_one_clause() -> None:
    assert cuda.unavailable() == "no CUDA driver: libcuda.so.1 was not found"
    with pytest.raises(DdmError, match=r"^no CUDA driver"):
        cuda.Device()


def test_without_the_bindings_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert cuda.unavailable() == "the package cuda-bindings is not installed; pip install cuda-bindings"


def test_device_info_on_a_fake_driver(driver: FakeDriver) -> None:
    assert cuda.device_info(driver) == cuda.DeviceInfo("Fake GPU", "sm_89", "13.1", 2**30)
    with pytest.raises(DdmError, match="no CUDA device 1: the driver shows 1"):
        cuda.device_info(driver, 1)


def test_an_error_carries_the_drivers_text(driver: FakeDriver, device: cuda.Device) -> None:
    driver.fail["cuMemAlloc"] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DdmError, match=r"^CUDA driver: cuMemAlloc: the fake's text for CUDA_ERROR_ILLEGAL_ADDRESS$"):
        device.allocate(16)


def test_a_thread_needs_the_context(device: cuda.Device) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            device.allocate(16)
        except DdmError as error:
            said.append(str(error))
        device.activate()
        device.allocate(16)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(said) == 1
    assert "CUDA_ERROR_INVALID_CONTEXT" in said[0]


def test_arrays_go_up_and_down(arrays: Arrays) -> None:
    for shape, dtype in (((3, 4), np.float32), ((5,), np.uint64), ((2, 0), np.float32), ((700, 900), np.float16)):
        host = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        array = arrays.from_host(host)
        assert (array.shape, array.dtype) == (shape, dtype)
        np.testing.assert_array_equal(arrays.to_host(array), host)


def test_an_upload_is_a_snapshot(arrays: Arrays) -> None:
    """Host memory may be reused at once, also by many more uploads than there are page-locked blocks."""
    host, made = np.zeros(100, np.float32), []
    for i in range(400):
        host[:] = i
        made.append(arrays.from_host(host))
    assert [float(arrays.to_host(array)[0]) for array in made] == [float(i) for i in range(400)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_rows_by_index_are_numpys(index: list[int]) -> None:
    driver = FakeDriver()
    device = cuda.Device(driver)
    arrays = Arrays(device, cuda.Stream(device))
    host = np.arange(6 * 7, dtype=np.float32).reshape(6, 7)
    array = arrays.from_host(host)
    rows = np.array(index, np.int64)
    taken = arrays.take(array, rows)
    # One copy per run of consecutive rows; none where there is one run.
    runs = 1 + int(np.count_nonzero(np.diff(rows) != 1))
    assert driver.calls["cuMemcpyDtoDAsync"] == (runs if runs > 1 else 0)
    np.testing.assert_array_equal(arrays.to_host(taken), host[rows])
    np.testing.assert_array_equal(arrays.to_host(arrays.concat([taken, array])), np.concatenate([host[rows], host]))


def test_a_series_comes_over_at_once_and_each_begins_where_kernels_expect_it() -> None:
    driver = FakeDriver()
    device = cuda.Device(driver)
    arrays = Arrays(device, cuda.Stream(device))
    for host in (np.arange(3 * 2 * 9, dtype=np.float32).reshape(3, 2, 9), np.arange(5)[:, None] + np.arange(7)):
        before = driver.calls["cuMemcpyHtoDAsync"]
        made = arrays.series(host)
        assert driver.calls["cuMemcpyHtoDAsync"] == before + 1
        assert len(made) == len(host)
        for array, want in zip(made, host, strict=True):
            assert (array.shape, array.dtype, array.pointer % 256) == (want.shape, want.dtype, 0)
            np.testing.assert_array_equal(arrays.to_host(array), want)


def test_rows_that_arent_there_are_refused(arrays: Arrays) -> None:
    array = arrays.from_host(np.zeros((3, 2), np.float32))
    for index in ([3], [-1], [0, 7]):
        with pytest.raises(IndexError, match="of an array that has 3"):
            arrays.take(array, np.array(index))
    with pytest.raises(ValueError, match="don't join"):
        arrays.concat([array, arrays.from_host(np.zeros((3, 1), np.float32))])


def test_memory_is_handed_on_and_freed(driver: FakeDriver, arrays: Arrays) -> None:
    for _ in range(20):
        first, second = (arrays.empty((100,), np.dtype(np.float32)) for _ in range(2))
        assert first.pointer != second.pointer
        del first, second
    assert driver.calls["cuMemAlloc"] == 2
    view = arrays.from_host(np.arange(8, dtype=np.float32).reshape(4, 2)).rows(1, 2)
    other = arrays.from_host(np.zeros((4, 2), np.float32))
    np.testing.assert_array_equal(arrays.to_host(view), [[2, 3], [4, 5]])  # a view keeps the memory
    arrays.close()
    del view, other
    assert driver.memory == driver.pinned == {}
    assert driver.live["event"] == 0


def test_a_full_device_gives_up_what_is_unused_before_it_says_so(driver: FakeDriver, arrays: Arrays) -> None:
    del_me = arrays.empty((10**6,), np.dtype(np.float32))
    del del_me
    driver.fail["cuMemAlloc"] = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(cuda.OutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
        arrays.empty((100,), np.dtype(np.float32))
    assert driver.calls["cuMemFree"] == 1
    assert driver.memory == {}


_ARGUMENTS = (Argument("x", "pointer", 8), Argument("n", "i32", 4), Argument("global_scratch", "scratch", 8))


def entry_of(shared_bytes: int = 0) -> Kernel:
    """Of a manifest, as far as a launch needs it."""
    return Kernel.model_construct(entry="kernel", arguments=_ARGUMENTS, num_warps=4, shared_bytes=shared_bytes)


def test_arguments_are_typed_by_their_kind() -> None:
    slots = cuda.pack(_ARGUMENTS, {"n": -3, "x": 2**40})
    assert [(bytes(slot), slot.value) for slot in slots] == [
        ((2**40).to_bytes(8, "little"), 2**40),
        (b"\xfd\xff\xff\xff", -3),
        (bytes(8), 0),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": 1}, "arguments are x, n; given were x"),
        ({"x": 1, "n": 1, "y": 1}, "given were x, n, y"),
        ({"x": 1, "n": 2**31}, "argument n is 2147483648, which i32 doesn't hold"),
        ({"x": -1, "n": 1}, "argument x is -1, which pointer doesn't hold"),
    ],
)
def test_arguments_that_dont_fit_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(DdmError, match=message):
        cuda.pack(_ARGUMENTS, values)


def test_a_cubin_for_another_device_is_refused(device: cuda.Device, driver: FakeDriver) -> None:
    with pytest.raises(DdmError, match=r"cuModuleLoadData: .*INVALID_IMAGE"):
        cuda.Kernel(device, b"something else", entry_of())
    driver.fail["cuModuleGetFunction"] = real.CUresult.CUDA_ERROR_NOT_FOUND
    with pytest.raises(DdmError, match="cuModuleGetFunction"):
        cuda.Kernel(device, fake_cubin(1, False, 1024, 0, []), entry_of())
    assert driver.live["module"] == 0


def test_much_shared_memory_is_asked_for(device: cuda.Device, driver: FakeDriver) -> None:
    for shared, asked in ((48 * 1024, 0), (48 * 1024 + 1, 1)):
        cuda.Kernel(device, fake_cubin(1, False, 1024, 0, []), entry_of(shared))
        assert driver.calls["cuFuncSetAttribute"] == asked


def test_a_capture_runs_nothing_and_is_thread_local(device: cuda.Device, driver: FakeDriver) -> None:
    stream = cuda.Stream(device)
    source, target = device.allocate(4), device.allocate(4)
    driver.view(source, 4)[:], driver.view(target, 4)[:] = 1, 0
    graph = stream.capture(lambda: stream.copy(target, source, 4))
    assert driver.capture_modes == [real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL]
    stream.synchronize()
    assert driver.view(target, 4).tolist() == [0] * 4
    stream.replay(graph)
    stream.synchronize()
    assert driver.view(target, 4).tolist() == [1] * 4
    graph.close()
    assert driver.live["graph"] == driver.live["executable"] == 0


def test_a_failed_capture_leaves_the_stream_usable(device: cuda.Device, driver: FakeDriver) -> None:
    stream = cuda.Stream(device)
    with pytest.raises(DdmError, match=r"cuStreamSynchronize: .*CAPTURE_UNSUPPORTED"):
        stream.capture(stream.synchronize)
    stream.synchronize()
    driver.fail["cuGraphInstantiate"] = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DdmError, match="cuGraphInstantiate"):
        stream.capture(lambda: None)
    assert driver.live["graph"] == 0


def test_an_event_is_waited_for(device: cuda.Device) -> None:
    stream, event = cuda.Stream(device), cuda.Event(device)
    stream.record(event)
    event.wait()
    assert event.ready()
