--
-- PostgreSQL database dump
--



SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: readings_rollup_mark(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.readings_rollup_mark() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    AS $$
        begin
            insert into public."readings_rollup_late" (hour, device_id, metric) values (
                pg_catalog.date_bin('3600000000 microseconds'::pg_catalog.interval, new.ts,
                    '1970-01-01 00:00:00+00'::pg_catalog.timestamptz), new.device_id, new.metric);
            return null;
        end $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: ingest_housekeeping; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.ingest_housekeeping (
    key text NOT NULL,
    value jsonb NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: readings; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings (
    ts timestamp with time zone NOT NULL,
    device_id text NOT NULL COLLATE pg_catalog."C",
    metric text NOT NULL COLLATE pg_catalog."C",
    value double precision NOT NULL
)
PARTITION BY RANGE (ts);


--
-- Name: readings_daily; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_daily (
    device_id text NOT NULL COLLATE pg_catalog."C",
    metric text NOT NULL COLLATE pg_catalog."C",
    day timestamp with time zone NOT NULL,
    count bigint NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    sum double precision NOT NULL,
    first double precision NOT NULL,
    last double precision NOT NULL
);


--
-- Name: readings_hourly; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_hourly (
    device_id text NOT NULL COLLATE pg_catalog."C",
    metric text NOT NULL COLLATE pg_catalog."C",
    hour timestamp with time zone NOT NULL,
    count bigint NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    sum double precision NOT NULL,
    first double precision NOT NULL,
    last double precision NOT NULL
);


--
-- Name: readings_p20250615; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20250615 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20250616; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20250616 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20250617; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20250617 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20250618; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20250618 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261130; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261130 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261201; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261201 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261202; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261202 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261203; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261203 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261204; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261204 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261205; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261205 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261206; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261206 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261207; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261207 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_p20261208; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_p20261208 (
    ts timestamp with time zone CONSTRAINT readings_ts_not_null NOT NULL,
    device_id text CONSTRAINT readings_device_id_not_null NOT NULL COLLATE pg_catalog."C",
    metric text CONSTRAINT readings_metric_not_null NOT NULL COLLATE pg_catalog."C",
    value double precision CONSTRAINT readings_value_not_null NOT NULL
);


--
-- Name: readings_rollup_due; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_rollup_due (
    hour timestamp with time zone NOT NULL,
    device_id text NOT NULL COLLATE pg_catalog."C",
    metric text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: readings_rollup_late; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.readings_rollup_late (
    hour timestamp with time zone NOT NULL,
    device_id text NOT NULL COLLATE pg_catalog."C",
    metric text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: readings_p20250615; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20250615 FOR VALUES FROM ('2025-06-15 00:00:00+00') TO ('2025-06-16 00:00:00+00');


--
-- Name: readings_p20250616; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20250616 FOR VALUES FROM ('2025-06-16 00:00:00+00') TO ('2025-06-17 00:00:00+00');


--
-- Name: readings_p20250617; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20250617 FOR VALUES FROM ('2025-06-17 00:00:00+00') TO ('2025-06-18 00:00:00+00');


--
-- Name: readings_p20250618; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20250618 FOR VALUES FROM ('2025-06-18 00:00:00+00') TO ('2025-06-19 00:00:00+00');


--
-- Name: readings_p20261130; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261130 FOR VALUES FROM ('2026-11-30 00:00:00+00') TO ('2026-12-01 00:00:00+00');


--
-- Name: readings_p20261201; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261201 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2026-12-02 00:00:00+00');


--
-- Name: readings_p20261202; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261202 FOR VALUES FROM ('2026-12-02 00:00:00+00') TO ('2026-12-03 00:00:00+00');


--
-- Name: readings_p20261203; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261203 FOR VALUES FROM ('2026-12-03 00:00:00+00') TO ('2026-12-04 00:00:00+00');


--
-- Name: readings_p20261204; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261204 FOR VALUES FROM ('2026-12-04 00:00:00+00') TO ('2026-12-05 00:00:00+00');


--
-- Name: readings_p20261205; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261205 FOR VALUES FROM ('2026-12-05 00:00:00+00') TO ('2026-12-06 00:00:00+00');


--
-- Name: readings_p20261206; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261206 FOR VALUES FROM ('2026-12-06 00:00:00+00') TO ('2026-12-07 00:00:00+00');


--
-- Name: readings_p20261207; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261207 FOR VALUES FROM ('2026-12-07 00:00:00+00') TO ('2026-12-08 00:00:00+00');


--
-- Name: readings_p20261208; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings ATTACH PARTITION public.readings_p20261208 FOR VALUES FROM ('2026-12-08 00:00:00+00') TO ('2026-12-09 00:00:00+00');


--
-- Data for Name: ingest_housekeeping; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.ingest_housekeeping VALUES
	('schema', '{"version": 1}', '2026-11-30 17:17:05.865852+00'),
	('table/readings', '{"span": "day"}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261130', '{"to_us": 1796083200000000, "from_us": 1795996800000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261201', '{"to_us": 1796169600000000, "from_us": 1796083200000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261202', '{"to_us": 1796256000000000, "from_us": 1796169600000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261203', '{"to_us": 1796342400000000, "from_us": 1796256000000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261204', '{"to_us": 1796428800000000, "from_us": 1796342400000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261205', '{"to_us": 1796515200000000, "from_us": 1796428800000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261206', '{"to_us": 1796601600000000, "from_us": 1796515200000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261207', '{"to_us": 1796688000000000, "from_us": 1796601600000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20261208', '{"to_us": 1796774400000000, "from_us": 1796688000000000}', '2026-11-30 17:17:05.865852+00'),
	('partition/readings_p20250618', '{"to_us": 1750291200000000, "from_us": 1750204800000000}', '2026-11-30 17:17:06.074012+00'),
	('partition/readings_p20250617', '{"to_us": 1750204800000000, "from_us": 1750118400000000}', '2026-11-30 17:17:06.074012+00'),
	('partition/readings_p20250616', '{"to_us": 1750118400000000, "from_us": 1750032000000000}', '2026-11-30 17:17:06.074012+00'),
	('partition/readings_p20250615', '{"to_us": 1750032000000000, "from_us": 1749945600000000}', '2026-11-30 17:17:06.074012+00'),
	('rollups', '{"off": false, "gone": [], "until_us": 1796050800000000, "days_until_us": 1795996800000000}', '2026-11-30 17:17:07.048296+00');


--
-- Data for Name: readings_daily; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_daily VALUES
	('rolled', 'm', '2025-06-15 00:00:00+00', 10, 0, 12, 60, 0, 12),
	('rolled', 'm', '2025-06-16 00:00:00+00', 10, 0.3333333333333333, 12.333333333333334, 63.333333333333336, 0.3333333333333333, 12.333333333333334),
	('rolled', 'm', '2025-06-17 00:00:00+00', 10, 0.6666666666666666, 12.666666666666666, 66.66666666666667, 0.6666666666666666, 12.666666666666666),
	('rolled', 'm', '2025-06-18 00:00:00+00', 10, 1, 13, 70, 1, 13);


--
-- Data for Name: readings_hourly; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_hourly VALUES
	('rolled', 'm', '2025-06-15 15:00:00+00', 10, 0, 12, 60, 0, 12),
	('rolled', 'm', '2025-06-16 15:00:00+00', 10, 0.3333333333333333, 12.333333333333334, 63.333333333333336, 0.3333333333333333, 12.333333333333334),
	('rolled', 'm', '2025-06-17 15:00:00+00', 10, 0.6666666666666666, 12.666666666666666, 66.66666666666667, 0.6666666666666666, 12.666666666666666),
	('rolled', 'm', '2025-06-18 15:00:00+00', 10, 1, 13, 70, 1, 13);


--
-- Data for Name: readings_p20250615; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_p20250615 VALUES
	('2025-06-15 15:06:40+00', 'rolled', 'm', 0),
	('2025-06-15 15:06:40.004+00', 'rolled', 'm', 1.3333333333333333),
	('2025-06-15 15:06:40.008+00', 'rolled', 'm', 2.6666666666666665),
	('2025-06-15 15:06:40.012+00', 'rolled', 'm', 4),
	('2025-06-15 15:06:40.016+00', 'rolled', 'm', 5.333333333333333),
	('2025-06-15 15:06:40.02+00', 'rolled', 'm', 6.666666666666667),
	('2025-06-15 15:06:40.024+00', 'rolled', 'm', 8),
	('2025-06-15 15:06:40.028+00', 'rolled', 'm', 9.333333333333334),
	('2025-06-15 15:06:40.032+00', 'rolled', 'm', 10.666666666666666),
	('2025-06-15 15:06:40.036+00', 'rolled', 'm', 12),
	('2025-06-15 15:06:40.04+00', 'late', 'm', 13.333333333333334),
	('2025-06-15 15:06:40.044+00', 'late', 'm', 14.666666666666666),
	('2025-06-15 15:06:40.048+00', 'late', 'm', 16),
	('2025-06-15 15:06:40.052+00', 'late', 'm', 17.333333333333332),
	('2025-06-15 15:06:40.056+00', 'late', 'm', 18.666666666666668);


--
-- Data for Name: readings_p20250616; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_p20250616 VALUES
	('2025-06-16 15:06:40.001+00', 'rolled', 'm', 0.3333333333333333),
	('2025-06-16 15:06:40.005+00', 'rolled', 'm', 1.6666666666666667),
	('2025-06-16 15:06:40.009+00', 'rolled', 'm', 3),
	('2025-06-16 15:06:40.013+00', 'rolled', 'm', 4.333333333333333),
	('2025-06-16 15:06:40.017+00', 'rolled', 'm', 5.666666666666667),
	('2025-06-16 15:06:40.021+00', 'rolled', 'm', 7),
	('2025-06-16 15:06:40.025+00', 'rolled', 'm', 8.333333333333334),
	('2025-06-16 15:06:40.029+00', 'rolled', 'm', 9.666666666666666),
	('2025-06-16 15:06:40.033+00', 'rolled', 'm', 11),
	('2025-06-16 15:06:40.037+00', 'rolled', 'm', 12.333333333333334),
	('2025-06-16 15:06:40.041+00', 'late', 'm', 13.666666666666666),
	('2025-06-16 15:06:40.045+00', 'late', 'm', 15),
	('2025-06-16 15:06:40.049+00', 'late', 'm', 16.333333333333332),
	('2025-06-16 15:06:40.053+00', 'late', 'm', 17.666666666666668),
	('2025-06-16 15:06:40.057+00', 'late', 'm', 19);


--
-- Data for Name: readings_p20250617; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_p20250617 VALUES
	('2025-06-17 15:06:40.002+00', 'rolled', 'm', 0.6666666666666666),
	('2025-06-17 15:06:40.006+00', 'rolled', 'm', 2),
	('2025-06-17 15:06:40.01+00', 'rolled', 'm', 3.3333333333333335),
	('2025-06-17 15:06:40.014+00', 'rolled', 'm', 4.666666666666667),
	('2025-06-17 15:06:40.018+00', 'rolled', 'm', 6),
	('2025-06-17 15:06:40.022+00', 'rolled', 'm', 7.333333333333333),
	('2025-06-17 15:06:40.026+00', 'rolled', 'm', 8.666666666666666),
	('2025-06-17 15:06:40.03+00', 'rolled', 'm', 10),
	('2025-06-17 15:06:40.034+00', 'rolled', 'm', 11.333333333333334),
	('2025-06-17 15:06:40.038+00', 'rolled', 'm', 12.666666666666666),
	('2025-06-17 15:06:40.042+00', 'late', 'm', 14),
	('2025-06-17 15:06:40.046+00', 'late', 'm', 15.333333333333334),
	('2025-06-17 15:06:40.05+00', 'late', 'm', 16.666666666666668),
	('2025-06-17 15:06:40.054+00', 'late', 'm', 18),
	('2025-06-17 15:06:40.058+00', 'late', 'm', 19.333333333333332);


--
-- Data for Name: readings_p20250618; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_p20250618 VALUES
	('2025-06-18 15:06:40.003+00', 'rolled', 'm', 1),
	('2025-06-18 15:06:40.007+00', 'rolled', 'm', 2.3333333333333335),
	('2025-06-18 15:06:40.011+00', 'rolled', 'm', 3.6666666666666665),
	('2025-06-18 15:06:40.015+00', 'rolled', 'm', 5),
	('2025-06-18 15:06:40.019+00', 'rolled', 'm', 6.333333333333333),
	('2025-06-18 15:06:40.023+00', 'rolled', 'm', 7.666666666666667),
	('2025-06-18 15:06:40.027+00', 'rolled', 'm', 9),
	('2025-06-18 15:06:40.031+00', 'rolled', 'm', 10.333333333333334),
	('2025-06-18 15:06:40.035+00', 'rolled', 'm', 11.666666666666666),
	('2025-06-18 15:06:40.039+00', 'rolled', 'm', 13),
	('2025-06-18 15:06:40.043+00', 'late', 'm', 14.333333333333334),
	('2025-06-18 15:06:40.047+00', 'late', 'm', 15.666666666666666),
	('2025-06-18 15:06:40.051+00', 'late', 'm', 17),
	('2025-06-18 15:06:40.055+00', 'late', 'm', 18.333333333333332),
	('2025-06-18 15:06:40.059+00', 'late', 'm', 19.666666666666668);


--
-- Data for Name: readings_p20261130; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261201; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261202; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261203; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261204; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261205; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261206; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261207; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_p20261208; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_rollup_due; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: readings_rollup_late; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.readings_rollup_late VALUES
	('2025-06-15 15:00:00+00', 'late', 'm'),
	('2025-06-15 15:00:00+00', 'late', 'm'),
	('2025-06-15 15:00:00+00', 'late', 'm'),
	('2025-06-15 15:00:00+00', 'late', 'm'),
	('2025-06-15 15:00:00+00', 'late', 'm'),
	('2025-06-16 15:00:00+00', 'late', 'm'),
	('2025-06-16 15:00:00+00', 'late', 'm'),
	('2025-06-16 15:00:00+00', 'late', 'm'),
	('2025-06-16 15:00:00+00', 'late', 'm'),
	('2025-06-16 15:00:00+00', 'late', 'm'),
	('2025-06-17 15:00:00+00', 'late', 'm'),
	('2025-06-17 15:00:00+00', 'late', 'm'),
	('2025-06-17 15:00:00+00', 'late', 'm'),
	('2025-06-17 15:00:00+00', 'late', 'm'),
	('2025-06-17 15:00:00+00', 'late', 'm'),
	('2025-06-18 15:00:00+00', 'late', 'm'),
	('2025-06-18 15:00:00+00', 'late', 'm'),
	('2025-06-18 15:00:00+00', 'late', 'm'),
	('2025-06-18 15:00:00+00', 'late', 'm'),
	('2025-06-18 15:00:00+00', 'late', 'm');


--
-- Name: ingest_housekeeping ingest_housekeeping_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.ingest_housekeeping
    ADD CONSTRAINT ingest_housekeeping_pkey PRIMARY KEY (key);


--
-- Name: readings_daily readings_daily_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_daily
    ADD CONSTRAINT readings_daily_pkey PRIMARY KEY (device_id, metric, day);


--
-- Name: readings_hourly readings_hourly_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_hourly
    ADD CONSTRAINT readings_hourly_pkey PRIMARY KEY (device_id, metric, hour);


--
-- Name: readings readings_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings
    ADD CONSTRAINT readings_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20250615 readings_p20250615_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20250615
    ADD CONSTRAINT readings_p20250615_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20250616 readings_p20250616_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20250616
    ADD CONSTRAINT readings_p20250616_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20250617 readings_p20250617_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20250617
    ADD CONSTRAINT readings_p20250617_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20250618 readings_p20250618_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20250618
    ADD CONSTRAINT readings_p20250618_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261130 readings_p20261130_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261130
    ADD CONSTRAINT readings_p20261130_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261201 readings_p20261201_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261201
    ADD CONSTRAINT readings_p20261201_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261202 readings_p20261202_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261202
    ADD CONSTRAINT readings_p20261202_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261203 readings_p20261203_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261203
    ADD CONSTRAINT readings_p20261203_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261204 readings_p20261204_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261204
    ADD CONSTRAINT readings_p20261204_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261205 readings_p20261205_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261205
    ADD CONSTRAINT readings_p20261205_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261206 readings_p20261206_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261206
    ADD CONSTRAINT readings_p20261206_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261207 readings_p20261207_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261207
    ADD CONSTRAINT readings_p20261207_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_p20261208 readings_p20261208_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_p20261208
    ADD CONSTRAINT readings_p20261208_pkey PRIMARY KEY (ts, device_id, metric, value);


--
-- Name: readings_rollup_due readings_rollup_due_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.readings_rollup_due
    ADD CONSTRAINT readings_rollup_due_pkey PRIMARY KEY (hour, device_id, metric);


--
-- Name: readings_daily_time_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX readings_daily_time_idx ON public.readings_daily USING brin (day) WITH (autosummarize='on', pages_per_range='32');


--
-- Name: readings_hourly_time_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX readings_hourly_time_idx ON public.readings_hourly USING brin (hour) WITH (autosummarize='on', pages_per_range='32');


--
-- Name: readings_p20250615_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20250615_pkey;


--
-- Name: readings_p20250616_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20250616_pkey;


--
-- Name: readings_p20250617_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20250617_pkey;


--
-- Name: readings_p20250618_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20250618_pkey;


--
-- Name: readings_p20261130_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261130_pkey;


--
-- Name: readings_p20261201_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261201_pkey;


--
-- Name: readings_p20261202_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261202_pkey;


--
-- Name: readings_p20261203_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261203_pkey;


--
-- Name: readings_p20261204_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261204_pkey;


--
-- Name: readings_p20261205_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261205_pkey;


--
-- Name: readings_p20261206_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261206_pkey;


--
-- Name: readings_p20261207_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261207_pkey;


--
-- Name: readings_p20261208_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.readings_pkey ATTACH PARTITION public.readings_p20261208_pkey;


--
-- Name: readings ingest_rollup_mark; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER ingest_rollup_mark AFTER INSERT ON public.readings FOR EACH ROW WHEN ((new.ts < (clock_timestamp() - '01:50:00'::interval))) EXECUTE FUNCTION public.readings_rollup_mark();


--
-- PostgreSQL database dump complete
--


