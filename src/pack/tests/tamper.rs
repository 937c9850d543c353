//! Packs that somebody changed, and packs that a faulty or hostile writer made.

use super::*;

/// Opens all that there is to open in the pack, and says whether anything that was in it came out.
fn opens_whole(store: &MemoryStore, master: &MasterKey, runs: &[Run; 2]) -> bool {
    let all = || -> Result<()> {
        let reader = open(store, master, runs[0].pack)?;
        reader.catalogue()?;
        runs.iter().try_for_each(|run| read(&reader, run).map(drop))
    };
    all().is_ok()
}

#[test]
fn no_byte_can_be_changed_but_of_the_padding() {
    let (store, master) = library();
    let runs = small_pack(&store, &master);
    let id = runs[0].pack;
    assert!(opens_whole(&store, &master, &runs));
    let trailer = open(&store, &master, id).unwrap().trailer().unwrap();
    let len = store.object(Area::Data, id).unwrap().len();
    let trailer_at = len - 60;
    let padding =
        (trailer.catalogue_cipher_offset + trailer.catalogue_cipher_len) as usize..trailer_at;
    // All of the small messages; of the two blocks' 16 KiB every 37th.
    let blocks_end = trailer.catalogue_cipher_offset as usize;
    let positions = (0..len).filter(|at| {
        *at < 200
            || at % 37 == 0
            || (blocks_end - 30..padding.start + 9).contains(at)
            || padding.end <= *at
    });
    for at in positions {
        store
            .with_object(Area::Data, id, |bytes| bytes[at] ^= 1 << (at % 8))
            .unwrap();
        assert_eq!(
            opens_whole(&store, &master, &runs),
            padding.contains(&at),
            "byte {at} of {len}"
        );
        store
            .with_object(Area::Data, id, |bytes| bytes[at] ^= 1 << (at % 8))
            .unwrap();
    }
    assert!(opens_whole(&store, &master, &runs));
}

#[test]
fn a_pack_cut_anywhere_is_damaged_and_says_where() {
    let (store, master) = library();
    let runs = small_pack(&store, &master);
    let id = runs[0].pack;
    let whole = store.object(Area::Data, id).unwrap();
    for len in (0..300)
        .chain((300..whole.len()).step_by(101))
        .chain([whole.len() - 1])
    {
        store.insert_object(Area::Data, id, whole[..len].to_vec());
        assert!(!opens_whole(&store, &master, &runs), "cut to {len}");
        if len >= HEADER_LEN && len < runs[1].cipher_offset as usize + 100 {
            let e = read(&open(&store, &master, id).unwrap(), &runs[1]).unwrap_err();
            assert_eq!(
                e.to_string(),
                format!("data/{id}: damaged: ends after {len} bytes")
            );
        }
    }
    store.insert_object(Area::Data, id, [&whole[..], b"x"].concat());
    assert!(!opens_whole(&store, &master, &runs), "a byte more");
}

#[test]
fn packs_under_each_others_names_open_nothing() {
    let (store, master) = library();
    let (one, two) = (small_pack(&store, &master), small_pack(&store, &master));
    let [a, b] = [one, two].map(|runs| store.object(Area::Data, runs[0].pack).unwrap());
    store.insert_object(Area::Data, one[0].pack, b.clone());
    store.insert_object(Area::Data, two[0].pack, a.clone());
    assert!(open(&store, &master, one[0].pack).is_err());
    assert!(open(&store, &master, two[0].pack).is_err());
    // With its own header in front of the other's blocks.
    store.insert_object(
        Area::Data,
        one[0].pack,
        [&a[..HEADER_LEN], &b[HEADER_LEN..]].concat(),
    );
    let reader = open(&store, &master, one[0].pack).unwrap();
    assert!(read(&reader, &one[0]).is_err() && reader.trailer().is_err());
    // Another library's key.
    store.insert_object(Area::Data, one[0].pack, a);
    let other = MasterKey::generate().unwrap();
    assert!(read(&open(&store, &other, one[0].pack).unwrap(), &one[0]).is_err());
}

#[test]
fn blocks_that_change_places_or_turn_to_zeros_do_not_open() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let run = writer
        .append(&[&content(4, 2 * BLOCK)], &note(b"", 0))
        .unwrap();
    publish(&store, writer);
    let (first, second) = (HEADER_LEN, HEADER_LEN + BLOCK_CIPHER_LEN as usize);
    let whole = store.object(Area::Data, run.pack).unwrap();
    store.with_object(Area::Data, run.pack, |bytes| {
        let (a, b) = bytes.split_at_mut(second);
        a[first..].swap_with_slice(&mut b[..BLOCK_CIPHER_LEN as usize]);
    });
    let reader = open(&store, &master, run.pack).unwrap();
    for block in 0..2 {
        let sealed = read_sealed(&reader, &run, block..block + 1).unwrap();
        let e = reader
            .open_block(&run, block, &sealed, &mut vec![0; BLOCK])
            .unwrap_err();
        let at = run.block_cipher_offset(block);
        assert_eq!(
            e.to_string(),
            format!(
                "data/{}: damaged: the block at {at} cannot be decrypted",
                run.pack
            )
        );
    }
    // The other way round: the sealed bytes are good, the place asked for is not theirs.
    store.insert_object(Area::Data, run.pack, whole);
    let reader = open(&store, &master, run.pack).unwrap();
    let sealed = read_sealed(&reader, &run, 1..2).unwrap();
    assert!(
        reader
            .open_block(&run, 0, &sealed, &mut vec![0; BLOCK])
            .is_err()
    );
    reader
        .open_block(&run, 1, &sealed, &mut vec![0; BLOCK])
        .unwrap();

    store.with_object(Area::Data, run.pack, |bytes| bytes[HEADER_LEN..].fill(0));
    assert!(read(&reader, &run).is_err() && reader.catalogue().is_err());
}

#[test]
fn impossible_runs_are_refused() {
    let (store, master) = library();
    let [good, _] = small_pack(&store, &master);
    let reader = open(&store, &master, good.pack).unwrap();
    let elsewhere = Run {
        pack: PackId(ObjectId([1; 16])),
        ..good
    };
    for run in [
        Run {
            plain_len: u32::MAX,
            ..good
        },
        Run {
            plain_len: 0,
            ..good
        },
        Run {
            cipher_offset: u32::MAX,
            ..good
        },
        Run {
            cipher_offset: 0,
            ..good
        },
        elsewhere,
    ] {
        for block in [0, 3, u32::MAX] {
            assert!(reader.open_block(&run, block, &[], &mut []).is_err());
        }
    }
    let past_the_end = PACK_CIPHER_LEN - HEADER_LEN as u32 + 1;
    for (start, len) in [(0, 100), (500, 0), (u32::MAX - 1, 1), (48, past_the_end)] {
        let mut sealed = vec![0; len as usize];
        assert!(reader.read_sealed(start, &mut sealed).is_err());
    }
}

/// Trailers and catalogues are sealed, but by any device of the library, and a later version's may be faulty.
#[test]
fn a_trailer_that_cannot_be_is_refused() {
    let good = Trailer {
        catalogue_cipher_offset: 100,
        catalogue_cipher_len: 50,
        true_cipher_len: 210,
        device: DEVICE,
        runs: 1,
    };
    assert!(good.is_possible(65_536) && good.is_possible(210));
    assert!(!good.is_possible(209));
    for wrong in [
        Trailer {
            true_cipher_len: 211,
            ..good
        },
        Trailer {
            catalogue_cipher_offset: 47,
            true_cipher_len: 157,
            ..good
        },
        Trailer {
            catalogue_cipher_len: 27,
            true_cipher_len: 187,
            ..good
        },
        Trailer {
            catalogue_cipher_len: u32::MAX,
            ..good
        },
        Trailer {
            catalogue_cipher_len: (8 << 20) + 1,
            true_cipher_len: 100 + 60 + (8 << 20) + 1,
            ..good
        },
        Trailer {
            catalogue_cipher_offset: u32::MAX,
            ..good
        },
    ] {
        assert!(!wrong.is_possible(u64::from(PACK_CIPHER_LEN)), "{wrong:?}");
    }
}

#[test]
fn a_catalogue_that_cannot_be_is_refused() {
    let decode = |bytes: &[u8]| super::catalogue::decode(bytes, PackId(ObjectId([1; 16])), 1000);
    let run = |offset: u32, len: u32, path: u32| {
        let mut bytes = Vec::new();
        let mut e = minicbor::Encoder::new(&mut bytes);
        e.array(2)
            .unwrap()
            .array(1)
            .unwrap()
            .bytes(b"p")
            .unwrap()
            .array(1)
            .unwrap()
            .array(6)
            .unwrap();
        e.u32(offset)
            .unwrap()
            .u32(len)
            .unwrap()
            .bytes(&[0; 16])
            .unwrap();
        e.u32(path).unwrap().u64(0).unwrap().u64(0).unwrap();
        bytes
    };
    assert_eq!(decode(&run(48, 924, 0)).unwrap().len(), 1);
    for (offset, len, path) in [
        (48, 925, 0),
        (47, 1, 0),
        (48, 0, 0),
        (48, u32::MAX, 0),
        (u32::MAX, 1, 0),
        (48, 1, 1),
    ] {
        assert!(
            decode(&run(offset, len, path)).is_err(),
            "{offset} {len} {path}"
        );
    }
    let good = run(48, 1, 0);
    // Members of a later version: one of the run, one of the catalogue.
    let mut longer = [&good[..], &[1, 0xf6]].concat();
    (longer[0], longer[5]) = (0x83, 0x87);
    assert_eq!(decode(&longer).unwrap(), decode(&good).unwrap());
    assert!(
        decode(&[&good[..], &[0]].concat()).is_err(),
        "something behind it"
    );
    (0..good.len()).for_each(|len| assert!(decode(&good[..len]).is_err(), "cut to {len}"));
    // Counts that claim more than is there must not be believed, nor allocated for.
    assert!(
        decode(&[
            0x82, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x41, b'p'
        ])
        .is_err()
    );
    assert!(decode(&[0x82, 0x9f, 0xff, 0x80]).is_err(), "no length");
}
