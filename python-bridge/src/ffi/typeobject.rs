//! `object.h`, the part about types: heap types of one interpreter whose instances carry a Rust value.
//!
//! The value lies behind the base type's own fields (`PyType_Spec.basicsize < 0`), so a subclass of `dict` works like a
//! plain object. Types can neither be instantiated nor subclassed from Python: every instance has been made by
//! [`NativeType::instance`], so has a payload.

use std::any::TypeId;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3_ffi as ffi;

use super::buffer::{self, BufferSource};
use super::methodobject::{Method, Property, method_def, property_def};
use super::{Object, Py, PyResult, Raised, trampoline};

/// A Rust value inside a Python object.
pub trait Payload: 'static {
    /// `module.Name`.
    const NAME: &'static CStr;
    /// What `help()` shows.
    const DOC: &'static CStr;
    /// Instances are dicts.
    const IS_DICT: bool = false;
}

/// A dict that may have to do something before somebody looks at its values.
pub trait LazyDict: Payload {
    /// Puts the values in place, once.
    fn complete(&self, py: Py, this: &Object) -> PyResult<()>;
}

/// A type in one interpreter.
pub struct NativeType<T> {
    class: Object,
    payload: PhantomData<T>,
}

/// A type under construction.
pub struct TypeBuilder<T> {
    methods: Vec<ffi::PyMethodDef>,
    properties: Vec<ffi::PyGetSetDef>,
    slots: Vec<ffi::PyType_Slot>,
    payload: PhantomData<T>,
}

impl<T: Payload> TypeBuilder<T> {
    /// A type without members.
    pub fn new() -> Self {
        let slots = vec![
            ffi::PyType_Slot { slot: ffi::Py_tp_dealloc, pfunc: dealloc::<T> as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_doc, pfunc: T::DOC.as_ptr() as *mut c_void },
        ];
        TypeBuilder { methods: Vec::new(), properties: Vec::new(), slots, payload: PhantomData }
    }

    /// With a method.
    pub fn method<M: Method<Owner = T>>(mut self) -> Self {
        self.methods.push(method_def::<M>());
        self
    }

    /// With a read-only attribute.
    pub fn property<P: Property<Owner = T>>(mut self) -> Self {
        self.properties.push(property_def::<P>());
        self
    }

    /// With `len()`.
    pub fn length(mut self) -> Self
    where
        T: Length,
    {
        self.slots.push(ffi::PyType_Slot { slot: ffi::Py_sq_length, pfunc: length::<T> as *mut c_void });
        self
    }

    /// With the buffer protocol.
    pub fn buffer(mut self) -> Self
    where
        T: BufferSource,
    {
        self.slots.push(ffi::PyType_Slot { slot: ffi::Py_bf_getbuffer, pfunc: buffer::get::<T> as *mut c_void });
        self.slots.push(ffi::PyType_Slot { slot: ffi::Py_bf_releasebuffer, pfunc: buffer::release as *mut c_void });
        self
    }

    /// With the slots of `dict` that see values, each completing the dict first.
    pub fn lazy_dict(mut self) -> Self
    where
        T: LazyDict,
    {
        self.slots.extend([
            ffi::PyType_Slot { slot: ffi::Py_mp_subscript, pfunc: dict_subscript::<T> as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_iter, pfunc: dict_iter::<T> as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_repr, pfunc: dict_repr::<T> as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_richcompare, pfunc: dict_richcompare::<T> as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_nb_or, pfunc: dict_or::<T> as *mut c_void },
        ]);
        self
    }

    /// Makes the type.
    pub fn build(mut self, _py: Py) -> PyResult {
        self.methods.push(ffi::PyMethodDef::zeroed());
        self.properties.push(ffi::PyGetSetDef::default());
        // Both tables live as long as the type, which lives as long as the interpreter (module invariant 5).
        let methods = Box::leak(self.methods.into_boxed_slice()).as_mut_ptr();
        let properties = Box::leak(self.properties.into_boxed_slice()).as_mut_ptr();
        self.slots.extend([
            ffi::PyType_Slot { slot: ffi::Py_tp_methods, pfunc: methods.cast() },
            ffi::PyType_Slot { slot: ffi::Py_tp_getset, pfunc: properties.cast() },
        ]);
        if T::IS_DICT {
            let base = (&raw mut ffi::PyDict_Type).cast::<c_void>();
            self.slots.push(ffi::PyType_Slot { slot: ffi::Py_tp_base, pfunc: base });
        }
        self.slots.push(ffi::PyType_Slot { slot: 0, pfunc: std::ptr::null_mut() });
        let mut spec = ffi::PyType_Spec {
            name: T::NAME.as_ptr(),
            basicsize: -(size_of::<T>() as c_int),
            itemsize: 0,
            flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION) as u32,
            slots: self.slots.as_mut_ptr(),
        };
        // SAFETY: `Py` witnesses the GIL; the spec is complete and copied; tables and names are 'static.
        unsafe { Object::owned_or_raised(ffi::PyType_FromSpec(&mut spec)) }
    }
}

/// A payload with a length.
pub trait Length: Payload {
    /// `len(self)`.
    fn length(&self) -> usize;
}

impl<T: Payload> NativeType<T> {
    /// The type of payload `T`, found as an attribute of `_saltus`.
    ///
    /// The name is what ties the class to `T`; the module is ours and names are unique in it.
    pub fn find(py: Py, module: &Object) -> PyResult<Self> {
        let name = T::NAME.to_str().unwrap_or_default().rsplit('.').next().unwrap_or_default();
        Ok(NativeType { class: module.getattr(py, name)?, payload: PhantomData })
    }

    /// A new instance around `value`.
    pub fn instance(&self, py: Py, value: T) -> PyResult {
        debug_assert!(align_of::<T>() <= 16, "CPython aligns type data to 16 bytes");
        let class = self.class.as_ptr().cast::<ffi::PyTypeObject>();
        let _ = py;
        // SAFETY: `Py` witnesses the GIL; `class` is a ready heap type made by `TypeBuilder::build`.
        let instance = unsafe {
            if T::IS_DICT {
                let arguments = Object::owned_or_raised(ffi::PyTuple_New(0))?;
                let new = ffi::PyDict_Type.tp_new.expect("dict can be made");
                new(class, arguments.as_ptr(), std::ptr::null_mut())
            } else {
                ffi::PyType_GenericAlloc(class, 0)
            }
        };
        if instance.is_null() {
            return Err(Raised::indicated());
        }
        // SAFETY: the type's data area has room for a `T` and is not initialised yet; the reference is new.
        unsafe {
            data::<T>(instance).write(value);
            Object::owned_or_raised(instance)
        }
    }
}

impl<T> Clone for NativeType<T> {
    fn clone(&self) -> Self {
        NativeType { class: self.class.clone(), payload: PhantomData }
    }
}

/// # Safety
/// `object` is an instance of the type of payload `T`.
unsafe fn data<T: Payload>(object: *mut ffi::PyObject) -> *mut T {
    // SAFETY: the type has no subclasses, so the instance's own type is the one whose data area holds the `T`.
    unsafe { ffi::PyObject_GetTypeData(object, ffi::Py_TYPE(object)).cast::<T>() }
}

/// # Safety
/// `object` is a live instance of the type of payload `T`; the GIL is held while the result is used.
pub(super) unsafe fn payload_of<'a, T: Payload>(object: *mut ffi::PyObject) -> &'a T {
    // SAFETY: the caller guarantees the type; payloads are only ever shared, `T` mutates through cells.
    unsafe { &*data::<T>(object) }
}

impl Object {
    /// The payload, if this is an instance of that very type.
    pub fn payload<T: Payload>(&self, class: &NativeType<T>) -> Option<&T> {
        // SAFETY: `self` is alive.
        let own = unsafe { ffi::Py_TYPE(self.as_ptr()) }.cast::<ffi::PyObject>();
        // SAFETY: the type was compared; `self` keeps the instance alive and is used under the GIL.
        (own == class.class.as_ptr()).then(|| unsafe { payload_of::<T>(self.as_ptr()) })
    }
}

unsafe extern "C" fn dealloc<T: Payload>(object: *mut ffi::PyObject) {
    // SAFETY: CPython calls this once, under the GIL, when the last reference is gone; the payload was written by
    // `instance` and is dropped once. For a dict the rest is `dict`'s own business, as it is for a Python subclass.
    unsafe {
        let class = ffi::Py_TYPE(object);
        if T::IS_DICT {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
        let dropped = catch_unwind(AssertUnwindSafe(|| std::ptr::drop_in_place(data::<T>(object))));
        if dropped.is_err() {
            tracing::error!(r#type = ?T::NAME, "a native object panicked in its drop");
        }
        if T::IS_DICT {
            (ffi::PyDict_Type.tp_dealloc.expect("dict can be freed"))(object);
        } else {
            ((*class).tp_free.expect("every type can free"))(object.cast());
        }
        ffi::Py_DECREF(class.cast());
    }
}

unsafe extern "C" fn length<T: Length>(object: *mut ffi::PyObject) -> ffi::Py_ssize_t {
    // SAFETY: a slot, called under the GIL with an instance of its type.
    unsafe { trampoline::enter(-1, |_py| Ok(payload_of::<T>(object).length() as ffi::Py_ssize_t)) }
}

/// # Safety
/// `object` is a live object; the GIL is held.
unsafe fn complete<T: LazyDict>(py: Py, object: *mut ffi::PyObject) -> PyResult<()> {
    // SAFETY: the caller guarantees it.
    unsafe {
        if ffi::Py_TYPE(object) as usize != class_of_payload::<T>(object) {
            return Ok(());
        }
        let this = Object::from_borrowed(object);
        payload_of::<T>(object).complete(py, &this)
    }
}

/// The address of `object`'s type if its deallocator is that of payload `T`, else 0: recognises our instances among
/// the operands of `|` without a look-up.
///
/// # Safety
/// `object` is a live object.
unsafe fn class_of_payload<T: Payload>(object: *mut ffi::PyObject) -> usize {
    // SAFETY: the caller guarantees it.
    let class = unsafe { ffi::Py_TYPE(object) };
    // SAFETY: a live object's type is alive.
    let found = unsafe { (*class).tp_dealloc };
    let own: ffi::destructor = dealloc::<T>;
    debug_assert_ne!(TypeId::of::<T>(), TypeId::of::<()>());
    if found.is_some_and(|d| d as usize == own as usize) { class as usize } else { 0 }
}

macro_rules! dict_slot {
    ($name:ident($($argument:ident: $type:ty),*) -> $table:ident . $slot:ident, completes $($completed:ident),+) => {
        unsafe extern "C" fn $name<T: LazyDict>($($argument: $type),*) -> *mut ffi::PyObject {
            // SAFETY: a slot, called under the GIL with live objects; `dict`'s own slot takes the same arguments.
            unsafe {
                trampoline::enter(std::ptr::null_mut(), |py| {
                    $(complete::<T>(py, $completed)?;)+
                    let slot = dict_slot!(@$table $slot);
                    Ok(Object::owned_or_raised(slot($($argument),*))?.into_ptr())
                })
            }
        }
    };
    (@mapping $slot:ident) => { (*ffi::PyDict_Type.tp_as_mapping).$slot.expect("dict has it") };
    (@number $slot:ident) => { (*ffi::PyDict_Type.tp_as_number).$slot.expect("dict has it") };
    (@class $slot:ident) => { ffi::PyDict_Type.$slot.expect("dict has it") };
}

dict_slot!(dict_subscript(this: *mut ffi::PyObject, key: *mut ffi::PyObject) -> mapping.mp_subscript, completes this);
dict_slot!(dict_iter(this: *mut ffi::PyObject) -> class.tp_iter, completes this);
dict_slot!(dict_repr(this: *mut ffi::PyObject) -> class.tp_repr, completes this);
dict_slot!(dict_richcompare(this: *mut ffi::PyObject, other: *mut ffi::PyObject, how: c_int) -> class.tp_richcompare,
    completes this, other);
dict_slot!(dict_or(left: *mut ffi::PyObject, right: *mut ffi::PyObject) -> number.nb_or, completes left, right);
