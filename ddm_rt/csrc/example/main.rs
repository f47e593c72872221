// Eight balanced images from a bundle, as PPM files, with nothing but rustc and bindgen:
//     bindgen ddm_rt.h --allowlist-item "(ddm_rt|DDM_RT)_.*" -o bindings.rs
//     DDM_RT_BINDINGS=$PWD/bindings.rs rustc --edition 2021 main.rs -l ddm_rt
#[allow(non_camel_case_types, dead_code)]
mod c {
    include!(env!("DDM_RT_BINDINGS"));
}
use std::{ffi::CStr, fmt, io::Write, ptr::null, ptr::null_mut, slice};

struct Error(*mut c::ddm_rt_error);

impl Drop for Error {
    fn drop(&mut self) {
        unsafe { c::ddm_rt_error_destroy(self.0) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        write!(to, "{}", unsafe { CStr::from_ptr(c::ddm_rt_error_message(self.0)) }.to_string_lossy())
    }
}

fn check(error: *mut c::ddm_rt_error) -> Result<(), Error> {
    if error.is_null() { Ok(()) } else { Err(Error(error)) }
}

// A handle that is freed by `free`.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    fn new(make: impl FnOnce(&mut *mut T) -> *mut c::ddm_rt_error, free: unsafe extern "C" fn(*mut T)) -> Result<Self, Error> {
        let mut handle = null_mut();
        check(make(&mut handle))?;
        Ok(Owned(handle, free))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

fn run(bundle: &str) -> Result<(), Error> {
    unsafe {
        // Text is a pointer and its size: it needs no null at its end.
        let (text, size) = (bundle.as_ptr().cast(), bundle.len() as i64);
        let abi = c::DDM_RT_ABI as i32;
        let model = Owned::new(|to| c::ddm_rt_model_open_abi(abi, text, size, null(), to), c::ddm_rt_model_close)?;
        let session = Owned::new(|to| c::ddm_rt_session_open(model.0, null(), to), c::ddm_rt_session_close)?;
        let request = Owned::new(|to| c::ddm_rt_request_create(to), c::ddm_rt_request_destroy)?;
        check(c::ddm_rt_request_set_n(request.0, 8))?;
        check(c::ddm_rt_request_set_provenance(request.0, 0))?; // the files below have no place for it
        let images = Owned::new(|to| c::ddm_rt_generate(session.0, request.0, to), c::ddm_rt_images_destroy)?;
        let (height, width) = (c::ddm_rt_images_height(images.0), c::ddm_rt_images_width(images.0));
        for i in 0..c::ddm_rt_images_count(images.0) {
            let name = format!("{i:05}.ppm");
            let pixels = slice::from_raw_parts(c::ddm_rt_images_rgb(images.0, i), (height * width * 3) as usize);
            let mut file = std::fs::File::create(&name).expect("a file can be made here");
            write!(file, "P6\n{width} {height}\n255\n").expect("it can be written");
            file.write_all(pixels).expect("it can be written");
            println!("{name}: top code {}", c::ddm_rt_images_top_code(images.0, i));
        }
    }
    Ok(())
}

fn main() {
    let bundle = std::env::args().nth(1).expect("usage: example BUNDLE");
    if let Err(error) = run(&bundle) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
