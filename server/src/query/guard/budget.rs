//! Memory that an array holds for as long as anybody has it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteArray, GenericListArray, OffsetSizeTrait};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ByteArrayType, DataType, LargeUtf8Type, Utf8Type};
use arrow::error::ArrowError;
use datafusion::execution::memory_pool::MemoryReservation;

/// A buffer, and the reservation that is given back with it.
struct Held {
    buffer: Buffer,
    _reservation: MemoryReservation,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

fn held(buffer: Buffer, reservation: MemoryReservation) -> Buffer {
    Buffer::from(bytes::Bytes::from_owner(Held { buffer, _reservation: reservation }))
}

/// The array, which gives the reservation back when it is dropped. Texts and lists are what gets large; the reservation of
/// anything else ends here.
pub(super) fn hold(array: ArrayRef, reservation: MemoryReservation) -> Result<ArrayRef, ArrowError> {
    Ok(match array.data_type() {
        DataType::Utf8 => Arc::new(hold_text::<Utf8Type>(array.as_bytes::<Utf8Type>().clone(), reservation)?),
        DataType::LargeUtf8 => {
            Arc::new(hold_text::<LargeUtf8Type>(array.as_bytes::<LargeUtf8Type>().clone(), reservation)?)
        }
        DataType::List(_) => Arc::new(hold_list(array.as_list::<i32>().clone(), reservation)?),
        DataType::LargeList(_) => Arc::new(hold_list(array.as_list::<i64>().clone(), reservation)?),
        _ => array,
    })
}

fn hold_text<T: ByteArrayType>(
    array: GenericByteArray<T>,
    reservation: MemoryReservation,
) -> Result<GenericByteArray<T>, ArrowError> {
    let (offsets, values, nulls) = array.into_parts();
    GenericByteArray::try_new(offsets, held(values, reservation), nulls)
}

fn hold_list<O: OffsetSizeTrait>(
    array: GenericListArray<O>,
    reservation: MemoryReservation,
) -> Result<GenericListArray<O>, ArrowError> {
    let (field, offsets, values, nulls) = array.into_parts();
    let count = offsets.len();
    let buffer = held(offsets.into_inner().into_inner(), reservation);
    let offsets = OffsetBuffer::new(ScalarBuffer::new(buffer, 0, count));
    GenericListArray::try_new(field, offsets, values, nulls)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int32Type;

    use super::super::memory::{AllMemory, QueryMemory};
    use super::*;

    #[test]
    fn memory_is_held_as_long_as_the_array_or_a_slice_of_it() {
        let all = AllMemory::new(1000);
        let memory = QueryMemory::new(&all);
        let arrays: [ArrayRef; 3] = [
            Arc::new(StringArray::from(vec!["abc", "de"])),
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), None])),
            Arc::new(Int64Array::from(vec![1, 2])),
        ];
        for (array, kept) in arrays.into_iter().zip([100, 100, 0]) {
            let again = hold(array.clone(), memory.take("test", 100).unwrap()).unwrap();
            assert_eq!(&again, &array);
            assert_eq!(all.used(), kept, "{}", array.data_type());
            let slice = again.slice(1, 1);
            drop(again);
            assert_eq!(all.used(), kept);
            drop(slice);
            assert_eq!(all.used(), 0);
        }
    }
}
